"""Pairs of a clean and a corrupt image: what a circuit is found and judged on, and how to get them.

Which images are drawn is in `pairing`, how images are corrupted in `corruption`, what is kept of
both in `recipe`; the tensors themselves are in `paired_images`.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from circuitvit.errors import CircuitError, in_short
from circuitvit.images.classes.imagenet import categories as animal_categories
from circuitvit.images.image_set import ImageSet
from circuitvit.images.pairs.corruption import MOST_NOISE, Patch, is_noise
from circuitvit.images.pairs.paired_images import PairedImages
from circuitvit.images.pairs.pairing import Judge, places_alone, places_by_category, places_by_class
from circuitvit.images.pairs.recipe import DTYPES, PairRecipe, check_recipe, tensors_of, written


class Pairs(PairedImages):
    """Clean images, each with a corrupt one that differs in what is under study.

    What is not needed may be left out: `zero` and `mean` ablation take no corrupt images, and `kl`
    no labels.

    All constructors take these arguments:

    * `count`: number of pairs; by default 64, or all there are if these are fewer. No clean image
      comes twice. They are as even over the classes as there are images: the classes take turns.
    * `seed`: draws everything. The same seed and images give the same pairs.
    * `right_for`: a model (a callable from images to logits, such as a ViT; it is run without
      gradients, in the mode it is in), or a mask [image]: only images that it gets right are drawn,
      clean or corrupt ones.

    A corrupt image that is made from the clean one (`occluded`, `noised`, `against_mean`) has no
    class of its own. Then, given a model in `right_for`, `corrupt_labels` are the classes that the
    model holds likeliest beside the right ones, on the clean images, so that `logit_difference` is
    the lead over the runner-up, as activation patching has it. Without a model there are none; use
    `kl` or `cross_entropy`.

    Attributes:
        clean: the images whose logits are explained.
        corrupt: the paired images that patching takes its values from.
        labels: the class of each clean image; kept as int64.
        corrupt_labels: the class of each corrupt image; kept as int64.
        recipe: how a constructor made them, in plain JSON, for `remake`; None if they were put
            together by hand. `acdc` and `eap` keep it as `circuit.provenance.pairs`.

    Raises:
        CircuitError: shapes, lengths or dtypes disagree, there are no pairs, a pixel is not finite
            or a label negative; every problem is named.
    """

    @classmethod
    def by_class(
        cls,
        images: ImageSet,
        *,
        clean: str | int | None = None,
        corrupt: str | int | None = None,
        count: int | None = None,
        seed: int = 0,
        right_for: Any = None,
    ) -> "Pairs":
        """Pair images of one class with images of another.

        No clean image comes twice; a corrupt one may. With `clean=None` the classes take turns, so
        that the pairs are as even over the classes as there are images.

        Args:
            images: where the images come from.
            clean: name or index of the clean images' class; None is every class but `corrupt`.
            corrupt: likewise of the corrupt images; None draws one of the other classes for each
                pair, all equally likely.
            count: number of pairs; None is 64, or all there are.
            seed: draws the images.
            right_for: a model or a mask; draw only images that it gets right.

        Raises:
            CircuitError: a class is unknown or has no images, both classes are the same, or
                there are fewer (right) clean images than pairs.
        """
        judge = Judge.of(images, right_for)
        places = places_by_class(
            images, clean=clean, corrupt=corrupt, count=count, seed=seed, judge=judge
        )
        arguments = {"clean": clean, "corrupt": corrupt, "count": len(places[0])}
        return cls._made(images, written(
            "by_class", images, *places, arguments=arguments, seed=seed, right_for=judge.name
        ))  # fmt: skip

    @classmethod
    def by_category(
        cls,
        images: ImageSet,
        categories: Mapping[str, str] | None = None,
        *,
        clean: str | None = None,
        corrupt: str | None = None,
        count: int | None = None,
        seed: int = 0,
        right_for: Any = None,
    ) -> "Pairs":
        """Pair images of one coarse category with images of another: dogs with birds, fish, ….

        Args:
            images: where the images come from.
            categories: the category of each class that has images, by the class's name; by default
                those of the animals in Tiny-ImageNet (`images.categories()`).
            clean: the clean images' category; None is every one but `corrupt`.
            corrupt: the corrupt images' category; None draws one of the others for each pair, all
                equally likely, and within it one of its classes, all equally likely.
            count: number of pairs, as even over the classes as there are images; None is 64, or
                all there are.
            seed: draws the images.
            right_for: a model or a mask; draw only images that it gets right.

        Raises:
            CircuitError: a class has no category, a category is unknown, both are the same, or
                there are fewer (right) clean images than pairs.
        """
        judge = Judge.of(images, right_for)
        categories = animal_categories() if categories is None else categories
        places = places_by_category(
            images, categories, clean=clean, corrupt=corrupt, count=count, seed=seed, judge=judge
        )
        arguments = {"categories": categories, "clean": clean, "corrupt": corrupt}
        arguments["count"] = len(places[0])
        return cls._made(images, written(
            "by_category", images, *places, arguments=arguments, seed=seed, right_for=judge.name
        ))  # fmt: skip

    @classmethod
    def occluded(
        cls,
        images: ImageSet,
        *,
        clean: str | int | None = None,
        count: int | None = None,
        fill: str = "inpaint",
        size: int | float = 0.25,
        place: tuple[int, int] | None = None,
        align: int | None = None,
        seed: int = 0,
        right_for: Any = None,
    ) -> "Pairs":
        """Pair images with themselves, less what one square patch shows.

        Args:
            images: where the images come from.
            clean: name or index of the only class to take; None is all.
            count: number of pairs; None is 64, or all there are.
            fill: `inpaint` fills the patch smoothly from the pixels around it (each pixel is the
                mean of its neighbours); `blur` blurs it by a Gaussian with σ = side / 4.
            size: the patch's side: pixels (an int), or a share of the image's shorter side (a float
                above 0 and below 1).
            place: row and column of the patch's first pixel; None draws them for each image.
            align: what row, column and size are multiples of; a model's patch size makes the patch
                cover whole tokens.
            seed: draws the images and the places.
            right_for: a model or a mask; take only images that it gets right.

        Raises:
            CircuitError: the patch doesn't fit into the images, the class is unknown or has no
                images, or there are fewer (right) images than pairs.
        """
        judge = Judge.of(images, right_for)
        height, width = images.images.shape[2:]
        patch = Patch.checked(fill, size, place, align, height=height, width=width)
        arguments = {"fill": fill, "size": patch.size, "place": patch.place, "align": align}
        return cls._of_one("occluded", images, clean, count, seed, judge, arguments)

    @classmethod
    def noised(
        cls,
        images: ImageSet,
        *,
        clean: str | int | None = None,
        count: int | None = None,
        std: int | float | Tensor = 1.0,
        seed: int = 0,
        right_for: Any = None,
    ) -> "Pairs":
        """Pair images with themselves plus Gaussian noise.

        Args:
            images: where the images come from.
            clean: name or index of the only class to take; None is all.
            count: number of pairs; None is 64, or all there are.
            std: of the noise, a number > 0, in units of the normalised pixels: 1 is as much as the
                pixels themselves vary, where they are normalised by their own standard deviation.
            seed: draws the images and the noise.
            right_for: a model or a mask; take only images that it gets right.

        Raises:
            CircuitError: `std` is not above 0, the class is unknown or has no images, or there are
                fewer (right) images than pairs.
        """
        amount = std.item() if isinstance(std, Tensor) and std.ndim == 0 else std
        if not is_noise(amount):
            raise CircuitError(
                f"std is {in_short(std)}, expected a number > 0, in units of the pixels, at most "
                f"{MOST_NOISE:zg}."
            )
        return cls._of_one("noised", images, clean, count, seed, right_for, {"std": float(amount)})

    @classmethod
    def against_mean(
        cls,
        images: ImageSet,
        *,
        clean: str | int | None = None,
        count: int | None = None,
        seed: int = 0,
        right_for: Any = None,
    ) -> "Pairs":
        """Pair images with the mean of all of `images`, whichever are drawn.

        Args:
            images: where the images come from.
            clean: name or index of the only class to take; None is all.
            count: number of pairs; None is 64, or all there are.
            seed: draws the images.
            right_for: a model or a mask; take only images that it gets right.

        Raises:
            CircuitError: the class is unknown or has no images, or there are fewer (right) images
                than pairs.
        """
        return cls._of_one("against_mean", images, clean, count, seed, right_for, {})

    @classmethod
    def remake(cls, recipe: PairRecipe | None, images: ImageSet) -> "Pairs":
        """Make the same pairs again, bit for bit.

        Args:
            recipe: `pairs.recipe`, or `circuit.provenance.pairs`.
            images: the images that they were drawn from.

        Raises:
            CircuitError: there is no recipe, or the images are others than those.
        """
        check_recipe(recipe, images)
        assert recipe is not None
        return cls._made(images, recipe)

    @classmethod
    def _of_one(
        cls,
        made: str,
        images: ImageSet,
        clean: str | int | None,
        count: int | None,
        seed: int,
        right_for: Any,
        arguments: Mapping[str, Any],
    ) -> "Pairs":
        """Pairs whose corrupt image is made from the clean one."""
        judge = Judge.of(images, right_for)
        places = places_alone(images, clean=clean, count=count, seed=seed, judge=judge)
        arguments = {"clean": clean, "count": len(places), **arguments}
        return cls._made(images, written(
            made, images, places, None, arguments=arguments, seed=seed, right_for=judge.name,
            corrupt_labels=judge.runners_up(places),
        ))  # fmt: skip

    @classmethod
    def _made(cls, images: ImageSet, recipe: PairRecipe) -> "Pairs":
        pairs = cls(**tensors_of(recipe, images))
        for name in recipe["casts"]:
            pairs = pairs.to(dtype=DTYPES[name])
        return pairs._by(recipe)
