"""`predict` for every model of the package; decoders are imported on first use."""

from typing import TYPE_CHECKING, Any, no_type_check

if TYPE_CHECKING:
    from circuitvit.models.prediction import Prediction, Predictions


class Classifier:
    """A module from images to logits with a `config` and a `preprocessing`."""

    @no_type_check  # it checks its own input, with words for people
    def predict(
        self,
        pictures: Any,
        *,
        top: int = 5,
        batch: int = 64,
        pixel_range: tuple[float, float] | None = None,
        workers: int = 0,
    ) -> "Prediction | Predictions":
        """The classes that the model sees in pictures, best first, with their probabilities.

        Pictures are turned as their camera was held and then resized, cropped and normalised by
        `preprocessing`, whose class names are the labels (numbers where it has none). The model
        runs in eval mode without gradients, and is left as it was.

        Args:
            pictures: one, or a list of several: paths, PIL images, encoded files as bytes or opened
                by `open(path, "rb")`, or arrays of uint8 [height width] or [height width channel].
                An array of several is [image height width channel]; one of three axes is always a
                single picture, so a stack of grey ones needs a channel axis, `array[..., None]`.
                Grey, RGB, palette and transparent pictures become what the model takes;
                transparency is dropped.
            top: how many classes of each picture, at most all.
            batch: images at once.
            pixel_range: the values of black and of white, such as (0, 65535), in pictures of 16
                bits or of floats, which can't be read without it.
            workers: threads that decode.

        Returns:
            For one picture a `Prediction`, with `.labels` and `.probabilities` of its best
            classes, and a sequence of both in pairs; for several a sequence of such, whose
            `.labels` are the best of each picture.

        Raises:
            CircuitError: there are no pictures, some can't be read or are URLs, or an argument is
                out of range.
        """
        from circuitvit.models.prediction import predict

        return predict(
            self, pictures, top=top, batch=batch, pixel_range=pixel_range, workers=workers
        )
