"""Promise: networks are measured beside each other, and `vismoe bench` shows and writes it."""

import csv
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

import vismoe
from vismoe.cli import main
from vismoe.inference import measure_speed
from vismoe.kernels import native

PICO = "vmoe_pico_patch2_8_every2_e8"


class Sleeper(nn.Module):
    """A network with a known time and a known demand for memory."""

    def __init__(self, values: int):
        super().__init__()
        self.values = values
        self.weight = nn.Parameter(torch.zeros(250_000))
        self.pretrained_cfg = {"input_size": (1, 4, 4)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(10):
            large = torch.ones(self.values)
        return x.flatten(1).sum(1) + large.sum()


def test_more_work_takes_longer() -> None:
    networks = {"small": Sleeper(1_000), "large": Sleeper(20_000_000)}
    speeds = measure_speed(networks, 2, seconds=0.05)
    assert speeds["large"].milliseconds > 5 * speeds["small"].milliseconds
    for speed in speeds.values():
        assert speed.images_per_second == pytest.approx(2000 / speed.milliseconds)
    assert networks["small"].training


def test_more_memory_is_seen(forked: Path) -> None:
    """In a process of its own: what other tests freed is used again without a trace."""
    code = (
        "from tests.inference.test_speed import Sleeper, measure_speed; "
        "print(*[measure_speed({'': Sleeper(n)}, 1, 0.01)[''].megabytes for n in (1_000, 20_000_000)])"
    )
    root = Path(__file__).parents[2]
    printed = subprocess.run([forked, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    small, large = printed.split()
    if small != "None":
        assert float(small) >= 1
        assert float(large) > float(small) + 60


def test_bad_batch_sizes() -> None:
    with pytest.raises(ValueError, match="batch_size=0"):
        measure_speed({}, 0)


def test_bench_shows_the_twin_and_the_optimized_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "bench.csv"
    command = ["bench", PICO, "timm:test_vit", "--batch-sizes", "1", "2", "--seconds", "0.01", "--csv", str(file)]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "kernels: " + vismoe.kernels_in_use()[:4] in shown
    rows = list(csv.DictReader(file.read_text().splitlines()))
    forms = ["as it is"]
    if native() is not None:
        forms += ["optimized"] + ["optimized, bfloat16"] * native().has_bfloat16()
    names = [PICO, "vmoe_pico_patch2_8_dense", "timm:test_vit"]
    assert [(row["model"], row["form"]) for row in rows] == [(name, form) for name in names for form in forms]
    assert all(float(row["milliseconds_2"]) > 0 for row in rows)
    sparse, dense = rows[0], rows[len(forms)]
    assert int(sparse["parameters"]) > int(sparse["active_parameters"]) > int(dense["parameters"]) * 0.9
    assert main(command) == 2
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench"], "no models given"),
        (["bench", "nothing_like_that"], "nothing_like_that"),
        (["bench", PICO, "--batch-sizes", "0"], "batch_size=0"),
        (["bench", PICO, "--threads", "0"], "--threads 0"),
    ],
)
def test_bad_input(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(native() is None, reason="vismoe was installed without compiled kernels")
def test_a_predictor_optimizes_what_it_opens(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = vismoe.create_model(PICO, num_classes=3)
    nn.init.normal_(model.head.weight)
    folder = tmp_path / "model"
    vismoe.save(model, folder)
    opened, given = vismoe.Predictor(folder), vismoe.Predictor(model)
    x = {"image": torch.randn(2, *model.pretrained_cfg["input_size"])}
    assert opened.device.type == "cpu"
    assert not [*opened.model.parameters()] or opened.model.head.__class__ is not nn.Linear
    assert given.model is model
    assert type(model.head) is nn.Linear
    assert torch.allclose(opened.run(x), given.run(x), atol=1e-5)
