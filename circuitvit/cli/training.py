"""The command that trains or fine-tunes a ViT; common fields of the recipe are its options."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from circuitvit.cli.app import app, say
from circuitvit.cli.options import ImageOptions, takes_images
from circuitvit.errors import CircuitError, visible
from circuitvit.files import check_folder_writable, check_writable

if TYPE_CHECKING:
    from circuitvit.images import ImageSet, Splits


@app.command()
@takes_images
def train(
    *,
    out: Annotated[Path, typer.Argument(help="The folder for the model and its checkpoint.")],
    start_from: Annotated[
        str | None,
        typer.Option(
            help="A trained model to start from, as in inspect; it gets a new head for other "
            "classes than its own. Patch size to MLP width are then its own."
        ),
    ] = None,
    tune: Annotated[
        Literal["all", "head", "adapter"],
        typer.Option(help="What is trained; an adapter is saved on its own, with the head."),
    ] = "all",
    adapter_width: Annotated[
        int, typer.Option(help="Numbers a token in an adapter's bottleneck.")
    ] = 16,
    patch_size: Annotated[int, typer.Option(help="Side of a patch, in pixels.")] = 2,
    image_size: Annotated[int | None, typer.Option(help="Resize images to this side.")] = None,
    width: Annotated[int, typer.Option(help="Width of the residual stream.")] = 64,
    depth: Annotated[int, typer.Option(help="Number of blocks.")] = 4,
    heads: Annotated[int, typer.Option(help="Heads in each block.")] = 4,
    mlp_width: Annotated[int, typer.Option(help="Neurons of each MLP.")] = 128,
    epochs: Annotated[int, typer.Option(min=1)] = 100,
    learning_rate: Annotated[float, typer.Option(help="Its peak.")] = 1e-3,
    final_learning_rate: Annotated[float, typer.Option(help="Where its cosine ends.")] = 0.0,
    warmup_epochs: Annotated[float, typer.Option(help="Epochs of linear warm-up.")] = 5,
    schedule_by: Annotated[
        Literal["step", "epoch"], typer.Option(help="When the learning rate changes.")
    ] = "step",
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 0.05,
    batch: Annotated[int, typer.Option(min=1, help="Images a step.")] = 64,
    accumulate: Annotated[
        int, typer.Option(help="Micro-batches a step: more need less memory.")
    ] = 1,
    flip: Annotated[
        bool, typer.Option("--flip", help="Mirror every second image; not for digits.")
    ] = False,
    crop_scale: Annotated[
        float, typer.Option(help="Least share of the area that a random crop keeps; 1 is none.")
    ] = 1.0,
    rand_augment: Annotated[int, typer.Option(help="Operations of RandAugment an image.")] = 0,
    noise: Annotated[float, typer.Option(help="Its deviation, for pixels in [0, 1].")] = 0.0,
    erase: Annotated[float, typer.Option(help="Share of images with an erased part.")] = 0.0,
    mixup: Annotated[float, typer.Option(help="α of MixUp; 0 is none.")] = 0.0,
    cutmix: Annotated[float, typer.Option(help="α of CutMix; 0 is none.")] = 0.0,
    label_smoothing: Annotated[float, typer.Option(help="Spread over all classes.")] = 0.1,
    drop_path: Annotated[float, typer.Option(help="Stochastic depth's largest rate.")] = 0.0,
    ema: Annotated[
        float, typer.Option(help="Decay of the average of weights, such as 0.999; 0 is none.")
    ] = 0.0,
    patience: Annotated[
        int | None,
        typer.Option(help="Stop after so many epochs without a better one; the best is saved."),
    ] = None,
    distill_from: Annotated[
        str | None,
        typer.Option(help="A model to learn from too: a folder, a file, or a name as in inspect."),
    ] = None,
    distill_alpha: Annotated[float, typer.Option(help="The labels' share beside it.")] = 0.5,
    distill_temperature: Annotated[float, typer.Option(help="Softens its logits.")] = 2.0,
    mixed_precision: Annotated[
        Literal["no", "bf16", "fp16"],
        typer.Option(help="Of the forward pass; fp16 on a GPU only."),
    ] = "no",
    tensorboard: Annotated[
        Path | None, typer.Option(help="A folder for TensorBoard's curves.")
    ] = None,
    gradient_flow: Annotated[
        Path | None, typer.Option(help="Also write a page: gradient by layer and epoch.")
    ] = None,
    log: Annotated[
        bool, typer.Option(help="Some 20 lines an epoch on standard error, off a terminal.")
    ] = True,
    images: ImageOptions,
) -> None:
    """Train a ViT from scratch, or from a model; an interrupted run resumes where it stopped."""
    import circuitvit as cv
    from circuitvit.charts.chart import chart_page

    check_folder_writable(out)
    if gradient_flow is not None:
        check_writable(gradient_flow)
    if tensorboard is not None:
        check_folder_writable(tensorboard)
    recipe = cv.Recipe(
        epochs=epochs, learning_rate=learning_rate, final_learning_rate=final_learning_rate,
        warmup_epochs=warmup_epochs, schedule_by=schedule_by, weight_decay=weight_decay,
        batch=batch, accumulate=accumulate, horizontal_flip=flip, crop_scale=crop_scale,
        rand_augment=rand_augment, noise=noise, erase=erase, mixup=mixup, cutmix=cutmix,
        label_smoothing=label_smoothing, drop_path=drop_path, ema_decay=ema, patience=patience,
        distill_alpha=distill_alpha, distill_temperature=distill_temperature, tune=tune,
        adapter_width=adapter_width, mixed_precision=mixed_precision, seed=images.seed,
    )  # fmt: skip
    teacher: Any = None if distill_from is None else cv.load_vit(distill_from)
    if start_from is not None:
        vit, splits = _started(start_from, images, image_size)
    else:
        _check_fresh(tune)
        splits = images.splits(teacher, image_size=image_size)
        vit = _fresh(
            splits, images.seed, patch_size=patch_size, width=width, depth=depth, heads=heads,
            mlp_width=mlp_width,
        )  # fmt: skip
    try:
        result = cv.train(
            vit, splits.train, splits.validation, recipe, folder=out, teacher=teacher,
            tensorboard=tensorboard, log=_log if log else None,
        )  # fmt: skip
    except KeyboardInterrupt:
        say(
            "circuitvit: interrupted; the same command resumes after the last whole epoch.",
            err=True,
        )
        raise typer.Exit(130) from None
    if gradient_flow is not None:
        say(f"Wrote {chart_page(gradient_flow, result.gradient_flow())}.")
    if patience is not None:
        done = f"{len(result.history)} epochs of at most {epochs}"
        say(f"Saved is epoch {result.best_epoch}, the best of {done}.")
    _save(result.best or result.vit, splits.test, out, start_from)


def _check_fresh(tune: str) -> None:
    """Refuse to train a part of a new model."""
    if tune != "all":
        raise CircuitError(
            f"--tune {tune} doesn't train the rest of the model, and a new one is random. Name a "
            "trained one with --start-from."
        )


def _fresh(splits: "Splits", seed: int, **shape: Any) -> Any:
    """A new ViT for these images."""
    import circuitvit as cv

    images = splits.train.images.shape
    config = cv.ViTConfig(
        image_size=images[2], channels=images[1], classes=len(splits.train.class_names), **shape
    )
    return cv.ViT(config, seed=seed)


def _started(source: str, images: ImageOptions, image_size: int | None) -> tuple[Any, "Splits"]:
    """A trained model and the images, preprocessed for it; with a new head for other classes."""
    import circuitvit as cv
    from circuitvit.train import with_new_head

    vit = cv.load_vit(source, image_size=image_size).float()
    seen = vit.preprocessing
    # Without class names, so that the images keep their own classes.
    view = SimpleNamespace(image_size=vit.config.image_size, channels=vit.config.channels,
                           classes=None)  # fmt: skip
    bare = None if seen is None else replace(seen, class_names=None)
    splits = images.splits(SimpleNamespace(config=view, preprocessing=bare))
    names = splits.train.class_names
    if seen is None or seen.class_names != names:
        say(f"The head is a new one, of {len(names)} classes.")
        vit = with_new_head(vit, len(names), seed=images.seed)
    return vit, splits


def _save(trained: Any, test: "ImageSet", out: Path, start_from: str | None) -> None:
    """Write the model, or its adapter alone, and print its accuracy on the test images."""
    from circuitvit.measure import accuracy
    from circuitvit.train import AdaptedViT

    written = out
    if isinstance(trained, AdaptedViT):
        written = trained.adapter.save(out)
        say(
            f"An adapter of {trained.adapter.parameters:,} numbers; "
            f"cv.Adapter.load({str(out)!r}).apply(cv.load_vit({start_from!r})) is the whole model."
        )
    else:
        trained.save_pretrained(out)
    on_test = accuracy(trained, test.images, test.labels)
    say(f"Wrote {written}. Test accuracy {on_test.top1:z.2%} ({on_test.images} images).")


def _log(line: str) -> None:
    print(visible(line), file=sys.stderr, flush=True)
