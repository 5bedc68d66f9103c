"""Image files as a network wants them, and back: grey stays grey, alpha apart, 16 bits stay, ICC profile and EXIF are
kept."""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from probatum.errors import ProbatumError
from probatum.superres import png

__all__ = ["ENDINGS", "FORMATS", "Picture", "Sink", "format_for", "image_size", "opened", "read"]

ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".avif"}
FORMATS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "tiff": ".tif"}
LIMITS = {"jpeg": 65_535, "webp": 16_383}
SAVED: dict[str, dict[str, Any]] = {
    "jpeg": {"quality": 95, "subsampling": 0},
    "webp": {"quality": 95},
    "tiff": {"compression": "tiff_deflate"},
}
ORIENTATION = 0x0112
# What is kept of EXIF: description, maker, resolution, software, time, artist, copyright, the camera's settings and the
# place. Not the size, the thumbnail, or TIFF's own layout, which are wrong after enlarging.
KEPT_TAGS = (0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x8298)
SETTINGS, PLACE = 0x8769, 0x8825
SIZE_TAGS = (0xA002, 0xA003)


@dataclass(frozen=True)
class Picture:
    """An image upright.

    Attributes:
        colour: (H, W, 3), or (H, W) where it is grey; uint8 or uint16.
        alpha: (H, W) of the same type, or None.
        format: one of FORMATS where we can write the file's own, else "png".
        notes: what was changed on reading, in words.
    """

    colour: np.ndarray
    alpha: np.ndarray | None
    icc: bytes | None
    exif: bytes | None
    format: str
    notes: tuple[str, ...] = ()

    @property
    def grey(self) -> bool:
        return self.colour.ndim == 2

    @property
    def depth(self) -> int:
        return self.colour.dtype.itemsize * 8


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Pillow's image of a file; whatever goes wrong in the block is one line that names the file."""
    from PIL import Image, UnidentifiedImageError

    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None  # the user's own files: memory is checked by its amount, not by a guess at attacks
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                yield image
    except ProbatumError as error:
        raise ProbatumError(f"{path}: {error}") from None
    except UnidentifiedImageError:
        raise ProbatumError(f"{path}: not an image that can be read") from None
    except FileNotFoundError:
        raise ProbatumError(f"{path}: no such file") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ProbatumError(f"{path}: unreadable or truncated image ({why})") from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of a file's header, as stored."""
    with opened(path) as image:
        return image.size


def read(path: Path) -> Picture:
    """Read an image.

    Palettes expand, CMYK and other colour spaces become sRGB, EXIF orientation is applied.

    Raises:
        ProbatumError: unreadable, truncated, animated, floating-point pixels, 16-bit colour in another format than PNG.
    """
    with opened(path) as image:
        if getattr(image, "n_frames", 1) > 1:
            raise ProbatumError(f"has {image.n_frames} frames; take it apart first, only still images are enlarged")
        kind = (image.format or "").lower()
        kept = {"mpo": "jpeg"}.get(kind, kind)
        form = kept if kept in FORMATS else "png"
        with open(path, "rb") as file:
            head = png.header(file.read(33))
        if head is not None and head[2] == 16:
            found = png.decode(path.read_bytes())
            exif = image.getexif()
            if found.exif:
                exif.load(b"Exif\0\0" + found.exif)
            return _finish(found.pixels, found.icc, exif, form, ())
        image.load()
        exif = image.getexif()
        icc = image.info.get("icc_profile")
        pixels, icc, notes = _pixels(image, icc)
        return _finish(pixels, icc, exif, form, notes)


def _pixels(image: Any, icc: bytes | None) -> tuple[np.ndarray, bytes | None, tuple[str, ...]]:
    """(H, W) or (H, W, C) of any Pillow image; C is 2 or 4 with alpha."""
    mode, transparent = image.mode, "transparency" in image.info
    if mode == "1":
        image = image.convert("L")
    elif mode in ("P", "PA"):
        plain = not transparent and mode == "P"
        return np.array(image.convert("RGB" if plain else "RGBA")), icc, ("palette expanded",)
    elif mode in ("L", "RGB") and transparent:
        image = image.convert("LA" if mode == "L" else "RGBA")
    elif mode.startswith("I;16"):
        return np.array(image).astype(np.uint16), icc, ()
    elif mode == "I":
        values = np.array(image)
        if values.min() < 0 or values.max() > 65535:
            raise ProbatumError("32-bit pixels beyond 0..65535: save it with 16 bits")
        return values.astype(np.uint16), icc, ()
    elif mode == "F":
        raise ProbatumError("floating-point pixels: save it with 8 or 16 bits")
    elif mode not in ("L", "LA", "RGB", "RGBA"):
        image, icc = _to_srgb(image, icc)
        return np.array(image), icc, (f"{mode} became RGB",)
    return np.array(image), icc, ()


def _to_srgb(image: Any, icc: bytes | None) -> tuple[Any, bytes | None]:
    """CMYK, YCbCr, Lab and others in sRGB, through the embedded profile where there is a usable one; that profile no
    longer fits."""
    if icc and image.mode == "CMYK":
        from PIL import ImageCms

        try:
            converted = ImageCms.profileToProfile(
                image, ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
        except (ImageCms.PyCMSError, OSError):
            converted = None
        if converted is not None:
            return converted, None
    return image.convert("RGB"), None


def _finish(pixels: np.ndarray, icc: bytes | None, exif: Any, form: str, notes: tuple[str, ...]) -> Picture:
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    alpha = None
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        alpha = pixels[..., -1]
        pixels = pixels[..., 0] if pixels.shape[2] == 2 else pixels[..., :3]
    turn = exif.get(ORIENTATION, 1)
    if turn in range(2, 9):
        pixels = upright(pixels, turn)
        alpha = None if alpha is None else upright(alpha, turn)
        notes = (*notes, "turned upright")
    return Picture(pixels, alpha, icc, _kept(exif), form, notes)


def _kept(exif: Any) -> bytes | None:
    """EXIF without what no longer fits, as its TIFF part."""
    from PIL import Image

    new = Image.Exif()
    for tag in KEPT_TAGS:
        if tag in exif:
            new[tag] = exif[tag]
    for directory in (SETTINGS, PLACE):
        found = {tag: value for tag, value in exif.get_ifd(directory).items() if tag not in SIZE_TAGS}
        if found:
            new[directory] = found
    return new.tobytes().removeprefix(b"Exif\0\0") if len(new) else None


def upright(pixels: np.ndarray, turn: int) -> np.ndarray:
    """Undo EXIF orientation `turn` (1 to 8) of (H, W, ...)."""
    if turn >= 5:
        pixels = pixels.swapaxes(0, 1)
    if turn in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if turn in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def format_for(picture: Picture, width: int, height: int, wanted: str) -> str:
    """The format to write: `wanted`, or the file's own for "auto"; refused where it cannot hold the picture."""
    form = picture.format if wanted == "auto" else wanted
    if form not in FORMATS:
        raise ProbatumError(f"--format must be auto, {', '.join(FORMATS)}, got {wanted!r}")
    if form == "jpeg" and picture.alpha is not None:
        raise ProbatumError("JPEG holds no transparency; use --format png or webp")
    if form in ("jpeg", "webp") and picture.depth == 16:
        raise ProbatumError(f"{form} holds 8 bits and this picture has 16; use --format png")
    if form == "tiff" and picture.depth == 16 and (not picture.grey or picture.alpha is not None):
        raise ProbatumError("16-bit colour is written as PNG only; use --format png")
    if max(width, height) > LIMITS.get(form, 2**31 - 1):
        raise ProbatumError(
            f"{form} holds at most {LIMITS[form]} pixels a side and the result has {max(width, height)}; "
            "use --format png"
        )
    return form


class Sink:
    """Takes an enlarged picture from top to bottom and writes it: PNG by strips, other formats when it is whole."""

    def __init__(
        self, path: Path, picture: Picture, width: int, height: int, form: Literal["png", "jpeg", "webp", "tiff"] | str
    ) -> None:
        self.path, self.form, self.picture, self.row = path, form, picture, 0
        channels = (1 if picture.grey else 3) + (picture.alpha is not None)
        self.kind = np.uint16 if picture.depth == 16 else np.uint8
        self.file = open(path, "wb")  # noqa: SIM115 - closed by close or abandon
        if form == "png":
            self.writer = png.Writer(
                self.file, width, height, channels=channels, depth=picture.depth, icc=picture.icc, exif=picture.exif
            )
        else:
            from PIL import Image

            mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels] if picture.depth == 8 else "I;16"
            self.image = Image.new(mode, (width, height))

    def write(self, rows: np.ndarray) -> None:
        """The next rows, (h, W) or (h, W, C) with alpha last, in the picture's type."""
        if self.form == "png":
            self.writer.write(rows)
        else:
            from PIL import Image

            self.image.paste(Image.fromarray(np.ascontiguousarray(rows)), (0, self.row))
        self.row += len(rows)

    def close(self) -> None:
        """Finish, and put the bytes on the disk."""
        if self.form == "png":
            self.writer.close()
        else:
            options: dict[str, Any] = dict(SAVED[self.form])
            if self.picture.exif:
                # libtiff, which compresses, refuses directories inside EXIF; Pillow's own writer stores them
                options.pop("compression", None)
                options["exif"] = b"Exif\0\0" + self.picture.exif
            if self.picture.icc:
                options["icc_profile"] = self.picture.icc
            try:
                self.image.save(self.file, self.form.upper(), **options)
            except (ValueError, RuntimeError, SyntaxError) as error:
                raise ProbatumError(f"cannot be written as {self.form}: {error}") from None
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()

    def abandon(self) -> None:
        """Close and remove what was begun."""
        self.file.close()
        self.path.unlink(missing_ok=True)
