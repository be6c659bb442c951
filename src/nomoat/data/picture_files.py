"""A picture file to pixels: one square of the size asked for, or the reason why there is none.

    bytes -> header: kind, pixels within the limit -> decode, first frame, turned as its EXIF says -> 8 bits a channel
          -> laid on the ground colour -> centre square [Y, X, 3], and the alpha [Y, X] where something shows through

Shrinking weighs by area (Hamming's window, which has no negative weights: flat colours get no halos), enlarging is
bicubic, or nearest for drawings of few colours at a whole factor. Both work on sRGB values as they are stored, as the
usual pipelines and metrics do, not in linear light; colour profiles other than sRGB are not applied.

Nothing here runs another program, and only six formats are opened, whatever a file is called.
"""

from __future__ import annotations

import hashlib
import io
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin, WebPImagePlugin  # noqa: F401 - the last two register their formats

from nomoat.data.streams import UnreadableError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
SUFFIXES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff",
)  # fmt: skip
HEADS = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")
MOST_PIXELS = 89_478_485  # Pillow's own limit; as RGBA that is 358 MB
MOST_BYTES = 256_000_000
DECODED = 256  # JPEGs are decoded at the smallest of 1/1, 1/2, 1/4, 1/8 whose short side is still as long as this
FEW_COLOURS = 256
THUMBNAIL = 8
GREY = 8  # channels that differ by no more than this are grey: JPEG rounds
ARTIST = 0x013B  # EXIF
MADE_BY = {  # text chunks with which programs note what they were asked to draw
    "nomoat": "nomoat",
    "parameters": "stable-diffusion-webui",
    "workflow": "ComfyUI",
    "sd-metadata": "InvokeAI",
    "invokeai_metadata": "InvokeAI",
}
DEEP = "over 8 bits"
TOO_SMALL = "smaller than half of the size asked for"


@dataclass(frozen=True)
class Square:
    """A picture as it is stored.

    Args:
        pixels: [Y, X, 3], 0 to 255.
        alpha: [Y, X], 0 where only the ground shows; None where the picture is opaque.
        hash: SHA-256 of all its decoded pixels and their size, the same in whatever format they were stored.
        thumbnail: [8 * 8 * 3], for finding pictures that look alike.
        width, height: of the file.
        noted: what was done to it, in a word each: `animated`, `enlarged`, `turned`, `CMYK`, `over 8 bits`.
        author: as stated in the file.
        origin: the generator that left its mark in the file; empty: none did.
    """

    pixels: NDArray[np.uint8]
    alpha: NDArray[np.uint8] | None
    hash: bytes
    thumbnail: NDArray[np.uint8]
    width: int
    height: int
    noted: tuple[str, ...] = ()
    author: str = ""
    origin: str = ""


def is_coloured(pixels: NDArray[np.uint8]) -> bool:
    """Whether pixels [..., 3] are more than shades of grey."""
    red, green, blue = np.moveaxis(pixels.astype(np.int16), -1, 0)
    return bool(max(np.abs(red - green).max(), np.abs(green - blue).max(), np.abs(red - blue).max()) > GREY)


def looks_like_one(head: bytes) -> bool:
    """Whether a file that begins with these 12 bytes claims to be a picture of a kind that is read."""
    return head.startswith(HEADS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def square_of(
    content: bytes | NDArray[Any], size: int, ground: str = "white", least: int | None = None, codes: bool = False
) -> Square:
    """Decode a picture.

    Args:
        content: a file's bytes, or pixels [Y, X] or [Y, X, C].
        size: pixels a side.
        ground: colour on which transparent pictures are laid.
        least: shortest side that is enlarged; None: half of `size`.
        codes: a map of few values that mean classes: pixels are picked, never mixed.

    Raises:
        UnreadableError: it is no picture, damaged, too large or too small, with the reason.
    """
    image, facts = _of_array(content) if isinstance(content, np.ndarray) else _of_bytes(content, size)
    width, height = facts.size
    if min(width, height) < (size / 2 if least is None else least):
        raise UnreadableError(TOO_SMALL, f"{width} x {height} pixels")
    image, alpha = _laid(image, ground)
    codes = codes and 2 < len(image.convert("L").getcolors() or ()) <= 64
    noted = facts.noted + (("enlarged",) if min(width, height) < size else ())
    middle = _middle(image)
    thumbnail = middle.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX, reducing_gap=3.0)  # whatever the size
    return Square(
        np.asarray(_sized(middle, size, codes)),
        None if alpha is None else np.asarray(_sized(_middle(alpha), size, False)),
        hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest(),
        np.asarray(thumbnail).reshape(-1),
        width,
        height,
        noted,
        facts.author,
        facts.origin,
    )


def whole_of(content: bytes, ground: str = "white") -> NDArray[np.uint8]:
    """Decode a picture as it is: [Y, X, 3], the first frame, upright, 8 bits a channel, on a ground colour.

    Raises:
        UnreadableError: as `square_of`.
    """
    image, _ = _of_bytes(content, MOST_PIXELS)  # a JPEG is decoded in full
    return np.array(_laid(image, ground)[0])


def fitted(pixels: NDArray[np.uint8], size: int, codes: bool = False) -> NDArray[np.uint8]:
    """The middle square of a picture [Y, X, 3], `size` pixels a side; `codes`: pixels are picked, never mixed."""
    return np.array(_sized(_middle(Image.fromarray(pixels)), size, codes))


def sides_of(content: bytes) -> tuple[int, int]:
    """Width and height from the header alone; (0, 0) where it cannot be read."""
    with suppress(Exception), Image.open(io.BytesIO(content), formats=FORMATS) as image:
        return image.size
    return 0, 0


@dataclass(frozen=True)
class _Facts:
    size: tuple[int, int]
    noted: tuple[str, ...] = ()
    author: str = ""
    origin: str = ""


def _of_bytes(content: bytes, size: int) -> tuple[Image.Image, _Facts]:
    """The decoded first frame, upright, of at most 8 bits a channel, and what its file says."""
    if not content:
        raise UnreadableError("empty")
    if len(content) > MOST_BYTES:
        raise UnreadableError("file too large", f"{len(content) / 1e6:,.0f} MB, at most {MOST_BYTES / 1e6:,.0f}")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return _decoded(image, size)
    except UnreadableError:
        raise
    except Image.UnidentifiedImageError as error:
        if looks_like_one(content):
            raise UnreadableError("damaged picture", "its header is broken") from error
        raise UnreadableError("not a picture", "png, jpg, webp, gif, bmp and tiff are read") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableError("too many pixels", f"at most {MOST_PIXELS:,}") from error
    except Exception as error:  # Pillow's decoders raise whatever a broken file makes them trip over
        raise UnreadableError("damaged picture", f"{str(error) or type(error).__name__}"[:200]) from error


def _decoded(image: Image.Image, size: int) -> tuple[Image.Image, _Facts]:
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise UnreadableError("too many pixels", f"{width:,} x {height:,}, at most {MOST_PIXELS:,}")
    noted = []
    if image.format == "JPEG":
        share = max(DECODED, 2 * size) / max(1, min(width, height))
        image.draft(image.mode, (int(width * share) + 1, int(height * share) + 1))
    elif image.format != "MPO" and getattr(image, "is_animated", False):  # an MPO is one photograph with its preview
        noted.append("animated")
        image.seek(0)
    image.load()
    author, origin, turned = _said(image)
    upright = image
    if turned:
        with suppress(Exception):  # damaged EXIF turns nothing
            upright = ImageOps.exif_transpose(image)
            noted.append("turned")
    if upright.mode.startswith("I") or upright.mode == "F":
        noted.append(DEEP)
        upright = Image.fromarray(_bytes(np.asarray(upright)))
    if upright.mode == "CMYK":
        noted.append("CMYK")
    sides = (height, width) if upright.size[::-1] == image.size and "turned" in noted else (width, height)
    return upright, _Facts(sides, tuple(noted), author, origin)


def _said(image: Image.Image) -> tuple[str, str, bool]:
    """Author, generator, and whether EXIF asks for a turn."""
    exif: Any = {}
    with suppress(Exception):
        exif = image.getexif()
    author = exif.get(ARTIST) or image.info.get("Author") or ""
    origin = next((name for mark, name in MADE_BY.items() if mark in image.info), "")
    said = author.decode("utf-8", "replace") if isinstance(author, bytes) else str(author)
    return said.strip("\0 ")[:200], origin, exif.get(0x0112, 1) not in (0, 1)


def _of_array(pixels: NDArray[Any]) -> tuple[Image.Image, _Facts]:
    """A picture from an array of people's own."""
    grey = pixels.ndim == 2 or pixels.shape[-1] == 1
    eight = _bytes(pixels.reshape(pixels.shape[:2]) if grey else pixels)
    noted = () if pixels.dtype in (np.uint8, np.bool_) else (DEEP,)
    return Image.fromarray(eight), _Facts((pixels.shape[1], pixels.shape[0]), noted)


def _bytes(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Numbers of any kind as 0 to 255, by the range of their kind and never by the picture's own.

    So a dark picture stays dark. Fractions are taken as 0 to 1; whole numbers of 32 bits as the 8 or 16 that they fit.

    Raises:
        UnreadableError: numbers whose white is not known.
    """
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * np.uint8(255)
    low, high = (float(pixels.min()), float(pixels.max())) if pixels.size else (0.0, 0.0)
    whole = pixels.dtype.kind in "iu"
    most = 65535.0 if whole and (high > 255 or pixels.dtype.itemsize == 2) else 255.0 if whole or high > 1 else 1.0
    if not (low >= 0 and high <= most):  # also where one is no number
        raise UnreadableError("pixels of unknown range", f"{low:g} to {high:g}: which value is white is not said")
    return np.asarray(np.rint(pixels.astype(np.float64) * (255.0 / most)), dtype=np.uint8)


def _laid(image: Image.Image, ground: str) -> tuple[Image.Image, Image.Image | None]:
    """The picture as RGB on the ground colour, and its alpha where something shows through."""
    if image.has_transparency_data:
        full = image.convert("RGBA")
        alpha = full.getchannel("A")
        if alpha.getextrema()[0] < 255:  # type: ignore[operator]
            below = Image.new("RGBA", full.size, ground)
            below.alpha_composite(full)
            return below.convert("RGB"), alpha
        return full.convert("RGB"), None
    return image.convert("RGB"), None


def _middle(image: Image.Image) -> Image.Image:
    """The largest square in the middle; cut out, because `resize` with a box mixes in what lies around it."""
    width, height = image.size
    short = min(width, height)
    left, top = (width - short) // 2, (height - short) // 2
    return image if width == height else image.crop((left, top, left + short, top + short))


def _sized(image: Image.Image, size: int, codes: bool) -> Image.Image:
    """A square picture, `size` pixels a side."""
    side = image.width
    if side == size:
        return image
    few = side < size and size % side == 0 and image.getcolors(FEW_COLOURS) is not None
    if codes or few:
        return image.resize((size, size), Image.Resampling.NEAREST)
    how = Image.Resampling.HAMMING if side > size else Image.Resampling.BICUBIC
    return image.resize((size, size), how, reducing_gap=3.0)
