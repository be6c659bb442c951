"""A GGUF's weights as their blocks stand in the file, under our names: for those who compute with 8 or 4 bits.

    GGUF file -> quantised -> (config, Rows of a parameter: block type and bytes [R, S], one after the other)

A parameter of ours that is joined from several tensors (query, key, value; gate, up) comes in as many pieces, each with
its own type. Rows are put in our order; the numbers within a row, and so its blocks, are never touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from nomoat.families.lm import LM
from nomoat.hub import names
from nomoat.hub.blocks import Bytes, pack
from nomoat.hub.foreign import later, open_gguf


class Rows(NamedTuple):
    """Some rows of a parameter.

    Args:
        parameter: its name, as in `state_dict()`.
        first_row: where they begin in it.
        kind: the type of their blocks, one of `blocks.FORMATS`.
        columns: numbers a row.
        blocks_RS: their bytes, S a row; `blocks.unpack(kind, blocks_RS)` gives the numbers [R, columns].
    """

    parameter: str
    first_row: int
    kind: str
    columns: int
    blocks_RS: Bytes


def quantised(path: Path | str) -> tuple[LM, Iterator[Rows]]:
    """The model in a GGUF, and its weights as they stand there; vectors come as one row, in F32.

    Raises:
        DataError: the file is damaged, or something in it cannot be honoured.
    """
    header, config, table = open_gguf(Path(path))

    def pieces() -> Iterator[Rows]:
        for parameter, whole in names.wholes(config, table).items():
            for part in whole.parts:
                place = header.tensors[part.name]
                if len(whole.shape) == 2 and part.change in ("", "turned"):
                    order = names.CHANGES[part.change][0](torch.arange(part.rows), config.backbone)
                    blocks_RS = header.read(part.name)[order.numpy()] if part.change else header.read(part.name)
                    yield Rows(parameter, part.first_row, place.kind, whole.shape[1], blocks_RS)
                else:
                    tensor = later(header, part.name).make().float()
                    row_1C = names.CHANGES[part.change][0](tensor, config.backbone).reshape(1, -1).numpy()
                    yield Rows(parameter, part.first_row, "F32", row_1C.shape[1], pack("F32", row_1C))

    return config, pieces()
