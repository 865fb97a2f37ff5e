"""Whether answers are better than chance."""

from collections.abc import Sequence

from torch import Tensor

LEVEL = 0.05
"""Probability at which a difference counts as more than chance."""


def holm(probabilities: Sequence[float]) -> list[bool]:
    """Which of several hypotheses are rejected so that one or more are wrongly with a probability of at most 5 % (Holm
    1979)."""
    rejected = [False] * len(probabilities)
    for rank, number in enumerate(sorted(range(len(probabilities)), key=probabilities.__getitem__)):
        if probabilities[number] * (len(probabilities) - rank) > LEVEL:
            break
        rejected[number] = True
    return rejected


def weakness_of_one_label(labels: Tensor, scores: Tensor, classes: Sequence[str]) -> str | None:
    """Why answers with one class an image are of no use, in words; None where they are better than always answering
    the most frequent class by more than chance (sign test of the images on which just one of the two is right), or
    where all images are of one class.

    **Arguments:** `labels` (N,): class numbers; `scores` (N, K): logits; `classes`: names of the K classes.
    """
    from scipy.stats import binomtest  # its import takes a second

    counts, answers = labels.bincount(minlength=len(classes)), scores.argmax(1)
    frequent, images = int(counts.argmax()), len(labels)
    others = images - int(counts[frequent])
    if not others:
        return None
    right, is_frequent = answers == labels, labels == frequent
    wins, losses = int((right & ~is_frequent).sum()), int((~right & is_frequent).sum())
    always = f"always answering {classes[frequent]!r}, the most frequent class"
    if bool((answers == answers[0]).all()):
        return f"the model answers {classes[int(answers[0])]!r} for every image: it distinguishes no classes"
    if wins + losses and binomtest(wins, wins + losses, alternative="greater").pvalue <= LEVEL:
        return None
    if 0.5**others > LEVEL:
        return f"{images} images, {others} of them of another class, are too few to distinguish the model from {always}"
    return (
        f"the model is not better than {always}, by more than chance: it is right on {int(right.sum())} of {images} "
        f"images, that would be on {images - others} (sign test)"
    )


def weakness_of_several_labels(labels: Tensor, scores: Tensor, classes: Sequence[str]) -> str | None:
    """Why answers with several classes an image are of no use, in words; None where they differ between images and the
    images of some class are ranked above the others by more than chance (Mann-Whitney test, Holm's correction).

    **Arguments:** `labels` (N, K): which classes each image shows; `scores` (N, K): logits; `classes`: K names.
    """
    from scipy.stats import mannwhitneyu  # its import takes a second

    shown, found, answers = labels.bool(), [], scores > 0
    for number in range(len(classes)):
        ranked = scores[:, number].double().numpy()
        with_class = shown[:, number].numpy()
        if with_class.any() and not with_class.all():
            found.append(mannwhitneyu(ranked[with_class], ranked[~with_class], alternative="greater").pvalue)
    if found and not any(holm(found)):
        return (
            f"the model ranks the images of no class above the others by more than chance, on {len(labels)} images "
            f"(Mann-Whitney test of each class, Holm's correction for {len(found)} classes)"
        )
    if len(labels) > 1 and not bool((shown == shown[0]).all()) and bool((answers == answers[0]).all()):
        names = [name for name, is_answer in zip(classes, answers[0].tolist(), strict=True) if is_answer]
        answer = ", ".join(map(repr, names)) or "no class"
        return f"the model answers {answer} for every image at a probability of one half: only its ranking is of use"
    return None
