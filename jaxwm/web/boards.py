"""Board games as one looks at them: a board with the stones of both players, moves by name, and how a game ended.

Observations show a board from the side of whoever is to move; here the first player is always orange."""

from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from jaxwm.studio import paper, play
from jaxwm.studio.paper import ORANGE
from jaxwm.studio.pictures import SKY, Painter
from jaxwm.types import Spec, Step

GROUND, GRID = "#22303C", "#46586A"
CELL = 40  # pixels


class Board(NamedTuple):
    """Rows and columns, and whether a click on them names a cell or a column."""

    task: str
    rows: int
    columns: int
    by: str


BOARDS = {"TicTacToe": (3, 3, "cell"), "ConnectFour": (6, 7, "column"), "Go9x9": (9, 9, "cell")}


def find(spec: Spec) -> Board | None:
    """The board of an environment; None where it is not one of `BOARDS`."""
    suite, _, task = spec.name.partition("/")
    return Board(task, *BOARDS[task]) if suite == "pgx" and task in BOARDS else None


def stones(obs: Any) -> np.ndarray:
    """Whose stones lie where, `[rows, columns]`: 0 nobody's, 1 the first player's, 2 the second's."""
    planes, mover = np.asarray(obs["board"]), int(obs["to_play"])
    return np.where(planes[..., mover], 1, np.where(planes[..., 1 - mover], 2, 0))


def painter(board: Board) -> Painter:
    """How positions are painted."""

    def paint(obs: Any) -> np.ndarray:
        image = Image.new("RGB", (board.columns * CELL, board.rows * CELL), GROUND)
        draw = ImageDraw.Draw(image)
        for i, stone in enumerate(stones(obs).ravel().tolist()):
            y, x = (k * CELL for k in divmod(i, board.columns))
            draw.rectangle((x, y, x + CELL - 1, y + CELL - 1), outline=GRID)
            if stone:
                draw.ellipse((x + 6, y + 6, x + CELL - 7, y + CELL - 7), fill=ORANGE if stone == 1 else SKY)
        return np.asarray(image)

    colours = [(paper.patch(ORANGE), "first player"), (paper.patch(SKY), "second player")]
    return Painter(paint, lambda a, b: np.abs(paint(a).astype(int) - paint(b)).astype(np.uint8), colours, [])


def legal(board: Board, step: Step) -> dict[int, str]:
    """The legal moves at a step `[1, ...]`, action -> name."""
    return {action: name for name, action in play.moves(board.task, step).items()}


def result(step: Step) -> str:
    """How a game that is over at a step `[1, ...]` ended. The reward is that of the player who moved last."""
    reward, mover = float(step.reward[0]), 1 - int(step.obs["to_play"][0])
    if reward == 0:
        return "a draw"
    return f"the {('first', 'second')[mover if reward > 0 else 1 - mover]} player wins"


def move(board: Board, action: int) -> str:
    """A move by name; on these boards it does not depend on the position."""
    return play.move_name(board.task, action, None)  # type: ignore[arg-type]
