"""Tests whether predictions are better than chance."""

from collections.abc import Sequence

from torch import Tensor

LEVEL = 0.05
"""Significance level."""


def holm(probabilities: Sequence[float]) -> list[bool]:
    """Holm's correction for multiple tests (Holm 1979): with a probability of at least 95 %, no hypothesis is rejected
    wrongly.

    **Arguments:**

    - `probabilities`: p-value of each hypothesis.

    **Returns:** whether each hypothesis is rejected.
    """
    rejected = [False] * len(probabilities)
    for rank, number in enumerate(sorted(range(len(probabilities)), key=probabilities.__getitem__)):
        if probabilities[number] * (len(probabilities) - rank) > LEVEL:
            break
        rejected[number] = True
    return rejected


def weakness_of_one_label(labels: Tensor, scores: Tensor, classes: Sequence[str]) -> str | None:
    """Why predictions of one class per image are useless, as text.

    They are useful if they are significantly better than always predicting the most frequent class (sign test on the
    images where only one of the two is right).

    **Arguments:**

    - `labels`: (N,), class numbers.
    - `scores`: (N, K), logits.
    - `classes`: names of the K classes.

    **Returns:** the reason; None if the predictions are useful, or all images are of one class.
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
        return f"{images} images, {others} of them of other classes, are too few to compare the model with {always}"
    return (
        f"the model is not significantly better than {always}: it is right on {int(right.sum())} of {images} images, "
        f"and always answering the same on {images - others} (sign test)"
    )


def weakness_of_several_labels(labels: Tensor, scores: Tensor, classes: Sequence[str]) -> str | None:
    """Why predictions of several classes per image are useless, as text.

    They are useful if they differ between images, and for at least one class the images that show it are ranked
    significantly above the others (Mann-Whitney test, Holm's correction).

    **Arguments:**

    - `labels`: (N, K), which classes each image shows.
    - `scores`: (N, K), logits.
    - `classes`: names of the K classes.

    **Returns:** the reason; None if the predictions are useful.
    """
    from scipy.stats import mannwhitneyu  # its import takes a second

    shown, p_values, answers = labels.bool(), [], scores > 0
    for number in range(len(classes)):
        ranked = scores[:, number].double().numpy()
        with_class = shown[:, number].numpy()
        if with_class.any() and not with_class.all():
            p_values.append(mannwhitneyu(ranked[with_class], ranked[~with_class], alternative="greater").pvalue)
    if p_values and not any(holm(p_values)):
        return (
            f"for no class the model ranks its images significantly above the others, on {len(labels)} images "
            f"(Mann-Whitney test of each class, Holm's correction for {len(p_values)} classes)"
        )
    if len(labels) > 1 and not bool((shown == shown[0]).all()) and bool((answers == answers[0]).all()):
        names = [name for name, is_answer in zip(classes, answers[0].tolist(), strict=True) if is_answer]
        answer = ", ".join(map(repr, names)) or "no class"
        return f"the model answers {answer} for every image, with a threshold of 0.5: only its ranking is useful"
    return None
