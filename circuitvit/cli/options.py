"""Options that several commands share: a model, and the images that it is used on."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from circuitvit.errors import CircuitError

if TYPE_CHECKING:
    from circuitvit.images import Splits

ModelArgument = Annotated[
    str,
    typer.Argument(
        help="A folder (of circuitvit, transformers or timm), a checkpoint file, or a name: "
        "timm:NAME, hf:REPOSITORY, torchvision:NAME."
    ),
]


@dataclass(frozen=True)
class ImageOptions:
    """The images of a command; the fields are its options."""

    data: Annotated[
        str | None,
        typer.Option(
            help="'digits', a folder of images, a parquet or .npz file, a folder of parquet files, "
            "or a hub id such as uoft-cs/cifar10. The digits are the default where they fit."
        ),
    ] = None
    split: Annotated[
        list[str] | None,
        typer.Option(
            help="A slice, such as 'train[:2%]', or one a part: 'train=train[:2%]' 'test=test'."
        ),
    ] = None
    classes: Annotated[
        list[str] | None,
        typer.Option(help="Only this class, by name or index; once for each. Or 'animals'."),
    ] = None
    class_order: Annotated[
        Literal["alphabetical", "natural"] | None,
        typer.Option(help="The classes by name: 10 before 2 (alphabetical) or after it (natural)."),
    ] = None
    pixel_range: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Black and white of 16-bit or float images, such as 0 65535."),
    ] = None
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many images a split.")] = None
    cache: Annotated[
        Path | None, typer.Option(help="A folder to keep decoded images in for the next time.")
    ] = None
    workers: Annotated[int, typer.Option(min=0, help="Threads that decode images.")] = 0
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at an image that can't be read; else skip it.")
    ] = False
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Draws everything that is random.")
    ] = 0

    def source(self, model: Any = None) -> str:
        """The value of `--data`, by default the digits.

        Raises:
            CircuitError: it isn't given, and the model takes other images than the digits.
        """
        if self.data is not None:
            return self.data
        shape = getattr(model, "config", None)
        if shape is not None and (shape.channels, shape.image_size) != (1, 8):
            raise CircuitError(
                f"this model takes images of {shape.channels} × {shape.image_size} × "
                f"{shape.image_size}, not the digits. Name its images with --data ('--data digits' "
                "for the digits all the same)."
            )
        return "digits"

    def splits(self, model: Any = None, *, image_size: int | None = None) -> "Splits":
        """The images, preprocessed for a model if one is given."""
        import circuitvit as cv

        return cv.load_splits(
            self.source(model),
            model=model,
            image_size=image_size,
            classes="animals" if self.classes == ["animals"] else self.classes or None,
            pixel_range=self.pixel_range,
            class_order=self.class_order,
            split=_by_part(self.split),
            limit=self.limit,
            cache=self.cache,
            workers=self.workers,
            strict=self.strict,
            seed=self.seed,
        )


def _by_part(given: list[str] | None) -> Any:
    """`--split` as `load_splits` takes it: one slice, or a slice a part from PART=SLICE."""
    if not given:
        return None
    if len(given) == 1 and "=" not in given[0]:
        return given[0]
    pairs = [text.partition("=") for text in given]
    if not all(sign for _, sign, _ in pairs):
        raise CircuitError(
            f"--split is {given}: with more than one, each names its part, such as "
            "--split 'train=train[:2%]' --split test=test."
        )
    return {part: expression for part, _, expression in pairs}


def takes_images(command: Callable[..., None]) -> Callable[..., None]:
    """Replace a command's parameter `images` by the options of `ImageOptions`."""
    signature = inspect.signature(command)
    options = [
        inspect.Parameter(
            f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type
        )
        for f in fields(ImageOptions)
    ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        chosen = {option.name: given.pop(option.name) for option in options}
        command(**given, images=ImageOptions(**chosen))

    own = [p for name, p in signature.parameters.items() if name != "images"]
    kept = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    run.__signature__ = signature.replace(parameters=[*kept, *options])  # pyright: ignore[reportAttributeAccessIssue]
    run.__annotations__ = {p.name: p.annotation for p in (*kept, *options)}
    return run
