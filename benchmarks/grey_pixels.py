"""A simple baseline: logistic regression on 32 × 32 grey pixels, with the splits of a run of finetune.

    python benchmarks/grey_pixels.py runs/mine

The regularisation is chosen on the validation split. Then it is fitted on the training and validation split, and
evaluated on the test split.
"""

from pathlib import Path

import numpy as np
import tyro
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vismoe.data import flatten_alpha, open_data
from vismoe.training import Run

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)


def main(path: tyro.conf.Positional[Path]) -> None:
    """Print its accuracy on the test split, and the run's.

    Args:
        path: The run folder.
    """
    run = Run(path)
    part_of, data = run.read("split.json")["files"], open_data(run.recipe.data)
    pixels, labels, parts = [], [], []
    for images in data.train_and_val:
        for index, file in enumerate(images.files):
            if file in part_of:
                grey = flatten_alpha(images.image(index)).convert("L").resize((32, 32))
                pixels.append(np.asarray(grey, dtype=np.float32).ravel() / 255)
                labels.append(int(images.labels[index]))
                parts.append(part_of[file])
    x, y, part = np.array(pixels), np.array(labels), np.array(parts)

    def fitted(strength: float, rows: np.ndarray):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=500))
        return model.fit(x[rows], y[rows])

    train, validation, test = (part == name for name in ("train", "validation", "test"))
    best = max(STRENGTHS, key=lambda strength: fitted(strength, train).score(x[validation], y[validation]))
    score = fitted(best, train | validation).score(x[test], y[test])
    print(
        f"grey pixels {score:.4f}, the run {run.read('report.json')['test']['top1']:.4f}, on {test.sum()} test images"
    )


if __name__ == "__main__":
    tyro.cli(main)
