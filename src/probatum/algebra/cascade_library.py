"""Cascades by name: the paper's taxonomy of attention and its first examples, normalisations, softmax, cross-entropy.

Attention has torch's layout: queries Q (B, H, P, E), keys K (B, H, M, E), values V (B, H, M, F), result AV (B, H, P, F).

Sources: FuseMax cascades 1 to 5 and section IV; the 2-pass cascade, which the paper gives in words, and all below it are ours.
"""

__all__ = ["TAXONOMY"]

TAXONOMY: dict[str, str] = {
    "cascade-1": """
do: Y = A[k]*B[k]
    Z = Y*A[k]
""",
    "cascade-2": """
# the multiplication by Y is deferred until the sum is there
do: Y = A[k]*B[k]
    X = A[k]
    Z = Y*X
""",
    "cascade-3": """
# the running result is corrected whenever Y changes; a division by zero touches nothing and gives 0
init: RY[0] = 0
      RZ[0] = 0
do:   RY[k+1] = RY[k] + A[k]*B[k]
      RZ[k+1] = RZ[k]*(RY[k+1]/RY[k]) + RY[k+1]*A[k]
      Z = RZ[K]
until k >= K
""",
    "attention-3pass": """
# PyTorch eager, TensorFlow, FLAT, E.T.
do: QK[b,h,p,m] = Q[b,h,p,e]*K[b,h,m,e]/sqrt(E)
    GM[b,h,p]   = QK[b,h,p,m] :: max(m)
    SN[b,h,p,m] = exp(QK[b,h,p,m] - GM[b,h,p])
    SD[b,h,p]   = SN[b,h,p,m]
    A[b,h,p,m]  = SN[b,h,p,m]/SD[b,h,p]
    AV[b,h,p,f] = A[b,h,p,m]*V[b,h,m,f]
""",
    "attention-deferred": """
# the division waits for the product with V: F*P divisions in place of M*P, and a pass less
do: QK[b,h,p,m]  = Q[b,h,p,e]*K[b,h,m,e]/sqrt(E)
    GM[b,h,p]    = QK[b,h,p,m] :: max(m)
    SN[b,h,p,m]  = exp(QK[b,h,p,m] - GM[b,h,p])
    SD[b,h,p]    = SN[b,h,p,m]
    SNV[b,h,p,f] = SN[b,h,p,m]*V[b,h,m,f]
    AV[b,h,p,f]  = SNV[b,h,p,f]/SD[b,h,p]
""",
    "attention-2pass": """
# TileFlow, Choi et al.: a local maximum a tile, corrected by the global one in the second pass
extents: M0 = 256
do: BK[b,h,m1,m0,e]  = K[b,h,m1*M0+m0,e]
    BV[b,h,m1,m0,f]  = V[b,h,m1*M0+m0,f]
    BQK[b,h,p,m1,m0] = Q[b,h,p,e]*BK[b,h,m1,m0,e]/sqrt(E)
    LM[b,h,p,m1]     = BQK[b,h,p,m1,m0] :: max(m0)
    SLN[b,h,p,m1,m0] = exp(BQK[b,h,p,m1,m0] - LM[b,h,p,m1])
    SLD[b,h,p,m1]    = SLN[b,h,p,m1,m0]
    GM[b,h,p]        = LM[b,h,p,m1] :: max(m1)
    PLM[b,h,p,m1]    = exp(LM[b,h,p,m1] - GM[b,h,p])
    SD[b,h,p]        = SLD[b,h,p,m1]*PLM[b,h,p,m1]
    A[b,h,p,m1,m0]   = SLN[b,h,p,m1,m0]*(PLM[b,h,p,m1]/SD[b,h,p])
    AV[b,h,p,f]      = A[b,h,p,m1,m0]*BV[b,h,m1,m0,f]
""",
    "attention-1pass": """
# FlashAttention 1 and 2, Rabe and Staats, FuseMax
extents: M0 = 256
init: RM[b,h,p,0]    = -inf
      RD[b,h,p,0]    = 0
      RNV[b,h,p,f,0] = 0
do:   BK[b,h,m1,m0,e]     = K[b,h,m1*M0+m0,e]
      BV[b,h,m1,m0,f]     = V[b,h,m1*M0+m0,f]
      BQK[b,h,p,m1,m0]    = Q[b,h,p,e]*BK[b,h,m1,m0,e]/sqrt(E)
      LM[b,h,p,m1]        = BQK[b,h,p,m1,m0] :: max(m0)
      RM[b,h,p,m1+1]      = max(RM[b,h,p,m1], LM[b,h,p,m1])
      SLN[b,h,p,m1,m0]    = exp(BQK[b,h,p,m1,m0] - RM[b,h,p,m1+1])
      SLD[b,h,p,m1]       = SLN[b,h,p,m1,m0]
      SLNV[b,h,p,f,m1]    = SLN[b,h,p,m1,m0]*BV[b,h,m1,m0,f]
      PRM[b,h,p,m1]       = exp(RM[b,h,p,m1] - RM[b,h,p,m1+1])
      SPD[b,h,p,m1]       = RD[b,h,p,m1]*PRM[b,h,p,m1]
      RD[b,h,p,m1+1]      = SLD[b,h,p,m1] + SPD[b,h,p,m1]
      SPNV[b,h,p,f,m1]    = RNV[b,h,p,f,m1]*PRM[b,h,p,m1]
      RNV[b,h,p,f,m1+1]   = SLNV[b,h,p,f,m1] + SPNV[b,h,p,f,m1]
      AV[b,h,p,f]         = RNV[b,h,p,f,M1]/RD[b,h,p,M1]
until m1 >= M1
""",
    "attention-gqa-1pass": """
# grouped queries: G groups of R query heads share the keys and values of one head
extents: M0 = 256
init: RM[b,g,r,p,0]    = -inf
      RD[b,g,r,p,0]    = 0
      RNV[b,g,r,p,f,0] = 0
do:   BK[b,g,m1,m0,e]     = K[b,g,m1*M0+m0,e]
      BV[b,g,m1,m0,f]     = V[b,g,m1*M0+m0,f]
      BQK[b,g,r,p,m1,m0]  = Q[b,g,r,p,e]*BK[b,g,m1,m0,e]/sqrt(E)
      LM[b,g,r,p,m1]      = BQK[b,g,r,p,m1,m0] :: max(m0)
      RM[b,g,r,p,m1+1]    = max(RM[b,g,r,p,m1], LM[b,g,r,p,m1])
      SLN[b,g,r,p,m1,m0]  = exp(BQK[b,g,r,p,m1,m0] - RM[b,g,r,p,m1+1])
      SLD[b,g,r,p,m1]     = SLN[b,g,r,p,m1,m0]
      SLNV[b,g,r,p,f,m1]  = SLN[b,g,r,p,m1,m0]*BV[b,g,m1,m0,f]
      PRM[b,g,r,p,m1]     = exp(RM[b,g,r,p,m1] - RM[b,g,r,p,m1+1])
      RD[b,g,r,p,m1+1]    = SLD[b,g,r,p,m1] + RD[b,g,r,p,m1]*PRM[b,g,r,p,m1]
      RNV[b,g,r,p,f,m1+1] = SLNV[b,g,r,p,f,m1] + RNV[b,g,r,p,f,m1]*PRM[b,g,r,p,m1]
      AV[b,g,r,p,f]       = RNV[b,g,r,p,f,M1]/RD[b,g,r,p,M1]
until m1 >= M1
""",
    "softmax": """
do: GM[b]  = X[b,n] :: max(n)
    SN[b,n] = exp(X[b,n] - GM[b])
    SD[b]  = SN[b,n]
    Y[b,n] = SN[b,n]/SD[b]
""",
    "softmax-online": """
# Milakov and Gimelshein: maximum and sum in one pass; the result is the second
init: RM[b,0] = -inf
      RD[b,0] = 0
do:   RM[b,n+1] = max(RM[b,n], X[b,n])
      RD[b,n+1] = RD[b,n]*exp(RM[b,n] - RM[b,n+1]) + exp(X[b,n] - RM[b,n+1])
      Y[b,n_] = exp(X[b,n_] - RM[b,N])/RD[b,N]
""",
    "layernorm": """
# variance in two steps: mean, squared distances from it, result
do: MU[b]  = X[b,d]/D
    VAR[b] = square(X[b,d] - MU[b])/D
    Y[b,d] = (X[b,d] - MU[b])*rsqrt(VAR[b] + 0.00001)*G[d] + B[d]
""",
    "layernorm-moments": """
# sums of x and of x*x in one pass
do: MU[b]  = X[b,d]/D
    SQ[b]  = X[b,d]*X[b,d]/D
    IV[b]  = rsqrt(SQ[b] - MU[b]*MU[b] + 0.00001)
    Y[b,d] = (X[b,d] - MU[b])*IV[b]*G[d] + B[d]
""",
    "rmsnorm": """
do: SQ[b]  = X[b,d]*X[b,d]/D
    IV[b]  = rsqrt(SQ[b] + 0.00001)
    Y[b,d] = X[b,d]*IV[b]*G[d]
""",
    "cross-entropy": """
# of class numbers T; the filter reads the logit of the right class
do: GM[b] = X[b,c] :: max(c)
    SD[b] = exp(X[b,c] - GM[b])
    XT[b] = X[b,c : c == T[b]]
    L[b]  = log(SD[b]) + GM[b] - XT[b]
""",
    "cross-entropy-1pass": """
extents: C0 = 256
init: RM[b,0] = -inf
      RD[b,0] = 0
      RX[b,0] = 0
do:   BX[b,c1,c0] = X[b,c1*C0+c0]
      LM[b,c1]    = BX[b,c1,c0] :: max(c0)
      RM[b,c1+1]  = max(RM[b,c1], LM[b,c1])
      SLD[b,c1]   = exp(BX[b,c1,c0] - RM[b,c1+1])
      RD[b,c1+1]  = SLD[b,c1] + RD[b,c1]*exp(RM[b,c1] - RM[b,c1+1])
      LX[b,c1]    = BX[b,c1,c0 : c1*C0+c0 == T[b]]
      RX[b,c1+1]  = RX[b,c1] + LX[b,c1]
      L[b]        = log(RD[b,C1]) + RM[b,C1] - RX[b,C1]
until c1 >= C1
""",
    "cross-entropy-lse": """
# one reduction over the log semiring
do: Z[b]  = X[b,c] :: lse(c)
    XT[b] = X[b,c : c == T[b]]
    L[b]  = Z[b] - XT[b]
""",
    "matmul": """
do: Z[m,n] = A[m,k]*B[k,n]
""",
}
