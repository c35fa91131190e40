"""A contact sheet: some images of each class beside its name, to see at a glance whether labels are right."""

from __future__ import annotations

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont, ImageOps

from proxscore.vision.preparation.collected import Picture
from proxscore.vision.preparation.examining import upright

CLASSES, IMAGES = 40, 8  # at most, of a sheet and of a class
_SIDE, _GAP, _NAME = 96, 6, 220  # pixels: of an image, between them, and for names


def contact_sheet(rows: list[tuple[str, list[Picture]]]) -> Image.Image:
    """Draw a row per class: its name, and its images, each fitted into a square.

    Args:
        rows: name of the class with its count, and some images.
    """
    width = _NAME + IMAGES * (_SIDE + _GAP) + _GAP
    sheet = Image.new("RGB", (width, max(1, len(rows)) * (_SIDE + _GAP) + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 14)
    for number, (name, pictures) in enumerate(rows):
        top = _GAP + number * (_SIDE + _GAP)
        draw.multiline_text((_GAP, top + _SIDE // 3), _fitted(name, font), "black", font)
        for place, picture in enumerate(pictures[:IMAGES]):
            image, _ = upright(picture)
            left = _NAME + _GAP + place * (_SIDE + _GAP)
            sheet.paste(ImageOps.pad(image.convert("RGB"), (_SIDE, _SIDE), color="white"), (left, top))
    return sheet


def _fitted(name: str, font: ImageFont.FreeTypeFont) -> str:
    """A text of some lines, each cut to the width that there is."""
    lines = []
    for line in name.splitlines():
        cut = line
        while font.getlength(cut) > _NAME - 2 * _GAP:
            cut = f"{cut[:-2]}…"
        lines.append(cut)
    return "\n".join(lines)
