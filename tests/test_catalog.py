"""The catalog against what was asked for: 74 papers, 15 families, one plain line for idea and use."""

import re

import pytest

from probatum import ProbatumError
from probatum.catalog import catalog, families, family_names, find_family, find_paper

# The list the project set out with; the only other place that names all papers is the catalog itself.
ASKED = {
    "algebra": "fusemax generalized_convolution",
    "parallel": "zero zero_plus_plus zero_infinity fuyou zero_bubble zeropp",
    "zeroth": "mezo sparse_mezo senszoq adazeta deepzero zo_ae_ds",
    "finetune": "hift svft mos sara pela zeroi2v dare",
    "training": "lsuv st3 seq_vcr parallel_duality",
    "moe": "moe_plus_plus rectify_router",
    "nas": "parzc lpzero prenas",
    "sequence": "s4d ptd glm_130b markov_transformer ttm puyun usr",
    "vision": "sret spanet sparsenet recursivedet zero_tprune nudt4mstar",
    "superres": "carn tcsr cfsr pams nafssr st_avsr",
    "autoregressive": "var flexvar flowar code open_magvit2 nbp var_limits",
    "diffusion": "oms dimr greedy_growing mask_shift framebridge vid2vid_zero zero123pp zerorf",
    "zeroshot": "cosmo bi_vaegan av_ood zscl metaclip conzic",
    "trust": "zkdl verbose_images lsf_idm",
    "bandits": "c2mab_t",
}


def test_the_papers_are_the_74_asked_for_in_their_families():
    got = {family: [p.id for p in catalog().values() if p.family == family] for family in families()}
    assert {family: set(ids) for family, ids in got.items()} == {f: set(ids.split()) for f, ids in ASKED.items()}
    assert sum(map(len, got.values())) == len(catalog()) == 74


def test_families_stand_in_the_order_readers_meet_them():
    assert list(families()) == list(ASKED)


def test_papers_of_a_family_stand_together():
    order = [paper.family for paper in catalog().values()]
    assert [f for i, f in enumerate(order) if i == 0 or order[i - 1] != f] == list(ASKED)


@pytest.mark.parametrize("paper", catalog().values(), ids=lambda p: p.id)
def test_row(paper):
    assert re.fullmatch(r"[a-z][a-z0-9_]*", paper.id)
    stamp = re.fullmatch(r"(\d\d)(0[1-9]|1[0-2])\.(\d{4,5})", paper.arxiv)
    assert stamp, f"{paper.arxiv} is not an arXiv identifier"
    # arXiv went from four digits to five with January 2015
    assert len(stamp[3]) == (5 if int(stamp[1]) >= 15 else 4)
    assert paper.year == 2000 + int(stamp[1])
    assert 2015 <= paper.year <= 2025
    for line in (paper.idea, paper.use):
        assert "\n" not in line and 40 <= len(line) <= 160
        assert line == line.strip() and line[0].isupper() and line.endswith(".")
        assert not re.search(r"\b(TODO|TBD|placeholder)\b", line, re.IGNORECASE)
    assert paper.idea != paper.use
    assert paper.title and "\n" not in paper.title


@pytest.mark.parametrize("field", ["arxiv", "title", "idea", "use"])
def test_no_two_papers_share(field):
    values = [getattr(paper, field) for paper in catalog().values()]
    assert len(set(values)) == len(values)


def test_families_say_what_they_are_for():
    for family in families().values():
        assert family.title and 30 <= len(family.about) <= 130 and "\n" not in family.about


def test_public_names_lead_to_the_module_of_their_paper():
    for family in families():
        names = family_names(f"probatum.{family}")
        assert set(names) == {n for p in catalog().values() if p.family == family for n in p.public}
        assert all(module.startswith(f"probatum.{family}.") for module in names.values())


def test_an_unknown_paper_is_told_the_nearest():
    with pytest.raises(ProbatumError, match=r"unknown paper 'meso': did you mean .*mezo"):
        find_paper("meso")
    with pytest.raises(ProbatumError, match=r"unknown family 'vison': did you mean vision"):
        find_family("vison")
    assert find_paper("mezo").arxiv == "2305.17333"
