"""pytest tests/serve/test_service.py: models exchanged while requests run, pages, metrics, logs, the command."""

import io
import json
import logging
import re
import shutil
import socket
import threading

import pytest
import torch
from torch import nn

import vismoe
from vismoe.adapt import open_unfinished
from vismoe.cli import main
from vismoe.serve import Models, open_served
from vismoe.serve.requests.logs import JsonFormatter
from vismoe.training import Run

from .conftest import IMAGES, encoded, files, network, refusal

PNG = encoded(IMAGES[0])


def best(client):
    return client.post("/v1/predict", files=files(PNG)).json()["predictions"][0]


def test_reload(start, tmp_path):
    """The new weights answer. A folder that cannot be loaded, or whose answers are not finite, leaves the old ones; the
    error has no path."""
    path = vismoe.save(network(0), tmp_path / "model")
    client = start(Models([str(path)]))
    before = best(client)
    vismoe.save(network(1), path)
    assert best(client) == before
    assert client.post("/v1/reload").json() == {"status": "loaded"}
    after = best(client)
    assert [each["probability"] for each in after] == pytest.approx(
        vismoe.Predictor(network(1)).predict(IMAGES[0])[0].probabilities, abs=1e-5
    )
    assert after != before
    broken = network(2)
    nn.init.constant_(broken.head.weight, torch.nan)
    vismoe.save(broken, path)
    response = client.post("/v1/reload")
    assert refusal(response) == (409, "reload_failed")
    assert str(tmp_path) not in response.text
    (path / "config.json").write_text("{")
    assert refusal(client.post("/v1/reload")) == (409, "reload_failed")
    assert best(client) == after
    metrics = client.get("/metrics").text
    assert 'vismoe_reloads_total{result="failed"} 2.0' in metrics
    assert 'vismoe_reloads_total{result="loaded"} 1.0' in metrics


def test_no_request_is_lost_while_models_are_exchanged(start, tmp_path):
    """Three clients ask while the model is loaded again three times: each answer is the old or the new model's."""
    path = vismoe.save(network(0), tmp_path / "model")
    client = start(Models([str(path)]))
    known = [vismoe.Predictor(network(seed)).predict(IMAGES[0])[0].probabilities for seed in (0, 1)]
    statuses, others, is_over = [], [], threading.Event()

    def ask():
        while not is_over.is_set():
            response = client.post("/v1/predict", files=files(PNG))
            statuses.append(response.status_code)
            found = [each["probability"] for each in response.json()["predictions"][0]]
            if not any(found == pytest.approx(expected, abs=1e-5) for expected in known):
                others.append(found)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for seed in (1, 0, 1):
        vismoe.save(network(seed), path)
        assert client.post("/v1/reload").status_code == 200
    is_over.set()
    for thread in threads:
        thread.join(20)
    assert set(statuses) == {200}
    assert others == []


def test_experts_and_curves_of_a_run(start, tmp_path):
    """Computed once in the background on the run's validation split; the curves are those of its metrics."""
    vismoe.train("digits", out=tmp_path / "run", steps=2, evaluate_every=1)
    client = start(Models([str(tmp_path / "run")]))
    assert client.get("/v1/model").json()["models"][0]["run"]
    assert client.get("/v1/experts").status_code == 202
    for _ in range(600):
        response = client.get("/v1/experts")
        if response.status_code != 202:
            break
        threading.Event().wait(0.05)
    answer = response.json()
    assert (answer["status"], answer["images"], len(answer["classes"])) == ("ready", 200, 10)
    for layer in answer["layers"]:
        assert sum(layer["load"]) > 0
        assert len(layer["by_class"][0]) == 10
    run = client.get("/v1/run").json()
    assert [line["step"] for line in run["metrics"]][-1] == 2
    assert (run["steps"], run["finished"]) == (2, True)
    assert run["report"] == json.loads((tmp_path / "run" / "summary.json").read_text())
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')  # a line that is being written
    assert client.get("/v1/run").json()["metrics"] == run["metrics"]


def test_page_and_docs_ask_no_other_host(shared):
    """The page's files are served by name, and nothing beside them; the API's page works offline."""
    page = shared.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    names = re.findall(r'(?:src|href)="(page/[^"]+)"', page.text)
    assert names
    for name in names:
        assert shared.get(f"/{name}").status_code == 200
    docs = shared.get("/docs").text
    assert "POST /v1/predict" in docs
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', docs)
    for name in (
        "../settings.py",
        "..%2fsettings.py",
        "%2e%2e/settings.py",
        "",
        "none.js",
        "style.css/",
        "__init__.py",
    ):
        assert refusal(shared.get(f"/page/{name}")) == (404, "not_found")


def test_unknown_paths_and_methods(shared):
    assert refusal(shared.get("/v2/predict")) == (404, "not_found")
    assert refusal(shared.get("/v1/predict/")) == (404, "not_found")
    response = shared.get("/v1/predict")
    assert refusal(response) == (405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


def test_a_failure_of_the_service_tells_nothing(start, models, monkeypatch):
    """500 with the request's id; the log has the trace."""
    client = start()

    def fail(*arguments):
        raise RuntimeError("secret in /home/somebody")

    monkeypatch.setattr(type(models), "__getitem__", fail)
    response = client.post("/v1/predict", files=files(PNG))
    assert refusal(response) == (500, "internal")
    assert "secret" not in response.text
    assert response.headers["x-request-id"] in response.text


def test_metrics_count_routes_and_not_paths(start):
    """An attacker cannot make them grow."""
    client = start()
    client.post("/v1/predict", files=files(PNG, PNG))
    for number in range(5):
        client.get(f"/unknown-{number}")
    text = client.get("/metrics").text
    assert 'vismoe_requests_total{path="/v1/predict",status="200"} 1.0' in text
    assert 'vismoe_requests_total{path="other",status="404"} 5.0' in text
    assert "unknown-" not in text
    assert "vismoe_images_total 2.0" in text
    assert "vismoe_queue_images 0.0" in text


def test_logs_are_lines_of_json(start):
    """With the request's id; without its query, where people put secrets; no request forges a line."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("vismoe.serve")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        start().get("/v1/mo%0adel?token=hidden", headers={"X-Request-ID": "abc"})
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    (line,) = stream.getvalue().splitlines()
    values = json.loads(line)
    assert (values["request_id"], values["status"], values["path"]) == ("abc", 404, "/v1/mo\ndel")
    assert "hidden" not in line


def test_the_command_refuses(capsys, folder, tmp_path):
    """A public address without a token, a model that is not there, a preset: one line, exit code 2."""
    for arguments in (
        [str(folder), "--host", "0.0.0.0"],
        [str(tmp_path / "none")],
        ["vmoe_pico_patch2_8_every2_e8"],
        [str(folder), "--token-file", str(tmp_path / "none")],
        [str(folder), "--max-body", "much"],
    ):
        assert main(["serve", *arguments]) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith("vismoe: error: ")
        assert printed.err.count("\n") == 1


def test_an_address_in_use(folder, capsys):
    """Is one line, not a trace."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", str(folder), "--port", port]) == 2
    assert f"cannot listen at 127.0.0.1 port {port}" in capsys.readouterr().err


def test_a_run_in_training(start, tmp_path, caplog):
    """A run without a model answers with its newest checkpoint, its curves grow, and it is not called finished. After
    a reload its model answers."""
    out = tmp_path / "run"
    recipe = {"steps": 4, "evaluate_every": 2, "checkpoint_every": 2, "schedule": "constant", "batch_size": 16}

    class StoppedError(Exception):
        pass

    def stop(status):
        if status.step > 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        vismoe.train("digits", out=out, on_status=stop, **recipe)
    assert not (out / "model").exists()
    client = start(Models([str(out)]))
    assert client.get("/v1/model").json()["models"][0]["step"] == 2
    run = client.get("/v1/run").json()
    assert (run["finished"], run["report"], run["metrics"][-1]["step"]) == (False, None, 3)
    answer = best(client)
    network, step = open_unfinished(Run(out))
    assert step == 2
    (expected,) = vismoe.Predictor(network).predict([IMAGES[0]])
    assert [each["label"] for each in answer] == expected.names
    assert [each["probability"] for each in answer] == pytest.approx(expected.probabilities, abs=1e-5)

    with (out / "checkpoints" / "step-000002" / "tensors.safetensors").open("r+b") as file:
        file.seek(2000)
        file.write(b"damage")
    with caplog.at_level(logging.WARNING, "vismoe.serve"):
        assert refusal(client.post("/v1/reload")) == (409, "reload_failed")
    assert "damaged" in caplog.text
    assert best(client) == answer

    vismoe.train("digits", out=out, resume=True, **recipe)
    assert client.get("/v1/run").json()["finished"]
    assert client.post("/v1/reload").status_code == 200
    assert client.get("/v1/model").json()["models"][0]["step"] is None
    (expected,) = vismoe.Predictor(str(out)).predict([IMAGES[0]])
    assert [each["probability"] for each in best(client)] == pytest.approx(expected.probabilities, abs=1e-5)


def test_a_run_that_goes_on_is_not_finished(start, tmp_path):
    """The summary of the shorter run does not count."""
    recipe = {"evaluate_every": 1, "checkpoint_every": 1, "schedule": "constant", "batch_size": 16}
    vismoe.train("digits", out=tmp_path / "run", steps=1, **recipe)
    client = start(Models([str(tmp_path / "run")]))
    seen = []
    vismoe.train(
        "digits",
        out=tmp_path / "run",
        steps=2,
        resume=True,
        on_status=lambda status: seen.append(client.get("/v1/run").json()["finished"]),
        **recipe,
    )
    assert seen
    assert not any(seen)
    assert client.get("/v1/run").json()["finished"]


def test_a_run_without_a_checkpoint(tmp_path):
    """It is refused with what to wait for."""
    vismoe.train("digits", out=tmp_path / "run", steps=1)
    for name in ("model", "checkpoints"):
        shutil.rmtree(tmp_path / "run" / name, ignore_errors=True)
    with pytest.raises(FileNotFoundError, match="no checkpoint yet: wait for its first best evaluation"):
        Models([str(tmp_path / "run")])


def test_a_model_that_is_no_path_has_nothing_of_the_current_folder(tmp_path, monkeypatch):
    """Started in the folder of a run, a service of another model does not show that run's curves."""
    vismoe.train("digits", out=tmp_path / "run", steps=1)
    monkeypatch.chdir(tmp_path / "run")
    monkeypatch.setattr("vismoe.serve.models.open_trained", lambda source: network())
    served = open_served("timm:name")
    assert (served.run, served.name, served.facts["run"]) == (None, "timm:name", False)
