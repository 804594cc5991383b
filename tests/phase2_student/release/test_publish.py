"""Publishing: the folder, the card, what is refused, and the push against a stand-in of the hub on loopback."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from click.testing import CliRunner
from report_cases import ALL, SAMPLES, make_evaluation, make_runs, with_weights, write_evaluation

from firstsight.models.gpus import bytes_text
from phase2_student.cli import main


@pytest.fixture
def place(tmp_path):
    """DIR/recipe.yaml of a run that is finished and evaluated."""
    (run,) = make_runs(tmp_path, names=("distilled",))
    recipe = {"training": {"output_dir": "runs/distilled"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    evaluation = make_evaluation(*ALL[:2], ("student", "student", 0.75))
    write_evaluation(run / "evaluation", with_weights(evaluation, run / "best"))
    return tmp_path


def publish(place, *arguments, repo="me/student"):
    command = ["publish", "--config", place / "recipe.yaml", "--repo", repo, *arguments]
    return CliRunner().invoke(main, [str(argument) for argument in command])


def test_a_dry_run_writes_the_exact_folder(place):
    from huggingface_hub import ModelCard

    (place / "runs" / "distilled" / "best" / "README.md").write_text("of the trainer")
    recipe = yaml.safe_load((place / "runs" / "distilled" / "recipe.yaml").read_text())
    recipe["data"]["root"], recipe["teacher"]["model"] = "/home/someone/data", "/home/someone/models/teacher"
    (place / "runs" / "distilled" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = publish(place, "--dry-run", "--license", "apache-2.0")
    assert done.exit_code == 0, done.output
    assert "nothing was uploaded" in done.output
    folder = place / "runs" / "distilled" / "publish"
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    best = {path.name: path.read_bytes() for path in (place / "runs" / "distilled" / "best").iterdir()}
    assert files.keys() == {*best, "README.md", "evaluation.json", "recipe.yaml"}
    assert best.pop("README.md") == b"of the trainer"
    assert all(files[name] == content for name, content in best.items())
    for name, content in files.items():
        assert re.search(rf" {re.escape(bytes_text(len(content)))}  {re.escape(name)}\n", done.output)
    assert b"/home/someone" not in files["recipe.yaml"] + files["README.md"]
    assert yaml.safe_load(files["recipe.yaml"])["data"]["root"] == "data"

    card = ModelCard.load(folder / "README.md")
    student = json.loads(files["evaluation.json"])["models"][2]["samples"]
    measured = {(result.metric_type, result.dataset_config): result.metric_value for result in card.data.eval_results}
    assert measured[("exact_match", None)] == pytest.approx(sum(r["exact"] for r in student) / SAMPLES, abs=1e-6)
    assert measured[("f1", None)] == pytest.approx(sum(r["f1"] for r in student) / SAMPLES, abs=1e-6)
    counting = [record["exact"] for record in student if record["category"] == "counting"]
    assert measured[("exact_match", "counting")] == pytest.approx(sum(counting) / len(counting), abs=1e-6)
    assert card.data.base_model == "Qwen/Qwen2-VL-2B-Instruct"
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "transformers")
    for wanted in (
        'from_pretrained("me/student")',
        "ab" * 32,
        "arXiv preprint arXiv:1503.02531",
        "## Limits",
        "alpha 0.7",
        "| training | 4 of 4 epochs, 100 steps",
    ):
        assert wanted in card.content
    table = [line for line in card.content.splitlines() if line.startswith("| exact match")]
    assert len(table) == 1
    assert publish(place, "--dry-run").exit_code == 0  # once more, over its own folder


def test_published_files_are_copies_with_modes_of_their_own(place):
    """A hard link would change in the folder what the next training changes in best/, and the other way round."""
    best = place / "runs" / "distilled" / "best"
    (best / "adapter").mkdir()
    (best / "adapter" / "adapter_config.json").write_text("{}")
    for path in (best / "model.safetensors", best / "adapter" / "adapter_config.json"):
        path.chmod(0o600)
    before = os.umask(0o027)
    try:
        done = publish(place, "--dry-run")
    finally:
        os.umask(before)
    assert done.exit_code == 0, done.output
    folder = place / "runs" / "distilled" / "publish"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert folder / "adapter" / "adapter_config.json" in files
    assert {path.stat().st_nlink for path in files} == {1}
    assert {path.stat().st_mode & 0o777 for path in files} == {0o640}
    assert {path.stat().st_mode & 0o777 for path in (folder, folder / "adapter")} == {0o750}


def test_a_card_without_figures_says_so(place):
    evaluation = next((place / "runs" / "distilled" / "evaluation").iterdir())
    evaluation.unlink()
    done = publish(place, "--dry-run", "--no-evaluation", "--output", place / "out")
    assert done.exit_code == 0, done.output
    text = (place / "out" / "README.md").read_text()
    assert "published without an evaluation" in text
    assert "model-index" not in text
    assert not (place / "out" / "evaluation.json").exists()


@pytest.mark.parametrize("reads", [True, False])
def test_a_card_names_the_date_of_a_template_that_reads_the_clock(place, reads):
    template = "{{ strftime_now('%d %b %Y') }}" if reads else "{{ 'now' }}"
    (place / "runs" / "distilled" / "best" / "chat_template.jinja").write_text(template)
    done = publish(place, "--dry-run", "--output", place / "out")
    assert done.exit_code == 0, done.output
    assert ("in training it was always 2024-07-26:" in (place / "out" / "README.md").read_text()) == reads


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """A user without a token."""
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("break_it", "arguments", "message"),
    [
        (lambda _: None, ["--repo", "me/stu dent"], "--repo me/stu dent: Repo id must"),
        (lambda _: None, ["--repo", "student"], "expected user/name, such as me/student"),
        (lambda run: (run / "best" / "config.json").unlink(), [], "best: no student found; run fs-student train"),
        (lambda run: (run / "best" / "model.safetensors").unlink(), [], "best: no student found"),
        (
            lambda run: next((run / "evaluation").iterdir()).unlink(),
            [],
            "no evaluation of the student was found; run fs-student eval",
        ),
        (
            lambda run: write_evaluation(run / "evaluation", make_evaluation(*ALL[:2], ("student", "student", 0.75))),
            [],
            "best: no model in the evaluation of 2026-11-25T00:10:00+00:00 (teacher, base, student) has these weights",
        ),
        (
            lambda run: (run / "best" / "model.safetensors").write_bytes(b"of a later step"),
            [],
            "best: no model in the evaluation of",
        ),
        (
            lambda run: (run / "publish").mkdir() or (run / "publish" / "thesis.tex").write_text("x"),
            [],
            "publish: holds thesis.tex, which does not belong to a student",
        ),
        (lambda _: None, ["--set", "training.output_dir=runs/none"], "runs/none/best: no student found"),
    ],
)
def test_refusals(place, break_it, arguments, message):
    break_it(place / "runs" / "distilled")
    done = publish(place, "--dry-run", *arguments)
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert done.stderr.startswith("Error: ")


@pytest.mark.usefixtures("nobody")
def test_without_a_token_nothing_is_begun(place):
    done = publish(place)
    assert done.exit_code == 2, done.output
    assert "no token for the hub was found; run `hf auth login` or set HF_TOKEN" in done.stderr
    assert not (place / "runs" / "distilled" / "publish").exists()
    assert publish(place, "--dry-run").exit_code == 0


class Hub(ThreadingHTTPServer):
    """Answers as the hub does: creation, upload modes, git-LFS batch and upload, commit."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.created: list[dict[str, object]] = []
        self.blobs: dict[str, bytes] = {}
        self.commits: list[list[dict[str, object]]] = []
        self.requests: list[str] = []
        self.token = "hf_stand_in"


class _Answers(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self._body()
        if self.headers.get("Authorization") != f"Bearer {self.server.token}" and not self.path.startswith("/lfs/"):
            return self._json({"error": "Invalid credentials"}, 401)
        if self.path == "/api/repos/create":
            if self.server.created:
                return self._json(
                    {"error": "You already created this model repo", "url": f"{self.server.url}/me/student"}, 409
                )
            self.server.created.append(json.loads(body))
            return self._json({"url": f"{self.server.url}/me/student"})
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self.path == "/api/models/me/student/preupload/main":
            large = {True: "lfs", False: "regular"}
            files = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": large[f["path"].endswith("tensors")], "shouldIgnore": False}
                for f in files
            ]
            return self._json({"files": modes})
        if self.path == "/me/student.git/info/lfs/objects/batch":
            objects = json.loads(body)["objects"]
            actions = [{"upload": {"href": f"{self.server.url}/lfs/{o['oid']}"}} for o in objects]
            return self._json(
                {"transfer": "basic", "objects": [{**o, "actions": a} for o, a in zip(objects, actions, strict=True)]}
            )
        if self.path == "/api/models/me/student/commit/main":
            self.server.commits.append([json.loads(line) for line in body.decode().splitlines()])
            return self._json({"commitUrl": f"{self.server.url}/me/student/commit/{'1' * 40}", "commitOid": "1" * 40})
        return self._json({"error": "not found"}, 404)

    def do_PUT(self) -> None:
        self.server.blobs[self.path.rpartition("/")[2]] = self._body()
        self._json({})

    def do_GET(self) -> None:
        self._body()
        self._json({"error": "not found"}, 404)

    def _body(self) -> bytes:
        self.server.requests.append(f"{self.command} {self.path}")
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _json(self, content: object, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub():
    server = Hub()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def push(place, endpoint: str, *arguments: str, token: str = "hf_stand_in") -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {
        "HF_ENDPOINT": endpoint,
        "HF_TOKEN": token,
        "HF_HOME": str(place / "home"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",  # its store speaks a protocol of its own: git-LFS it is
    }
    program = "from phase2_student.cli import main; main()"
    command = ["publish", "--config", str(place / "recipe.yaml"), "--repo", "me/student", *arguments]
    return subprocess.run(
        [sys.executable, "-c", program, *command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_push_puts_every_file_on_the_hub(place, hub):
    done = push(place, hub.url, "--private")
    assert done.returncode == 0, done.stderr
    assert f"{hub.url}/me/student/commit/{'1' * 40}" in done.stdout
    (created,) = hub.created
    assert (created["name"], created["organization"], created["visibility"]) == ("student", "me", "private")
    (commit,) = hub.commits
    received = {}
    for line in commit:
        value = line["value"]
        if line["key"] == "file":
            received[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            received[value["path"]] = hub.blobs[value["oid"]]
            assert hashlib.sha256(hub.blobs[value["oid"]]).hexdigest() == value["oid"]
    folder = place / "runs" / "distilled" / "publish"
    assert received == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert [line["value"]["path"] for line in commit if line["key"] == "lfsFile"] == ["model.safetensors"]
    again = push(place, hub.url)  # the repository is there
    assert again.returncode == 0, again.stderr
    assert len(hub.commits) == 2


def test_a_hub_that_refuses_or_is_not_there_is_told_in_one_line(place, hub):
    refused = push(place, hub.url, token="hf_wrong")
    assert refused.returncode == 2, refused.stderr
    assert "Error: me/student: the upload failed" in refused.stderr
    assert "401" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert "hf_wrong" not in refused.stderr
    absent = push(place, "http://127.0.0.1:9")
    assert absent.returncode == 2, absent.stderr
    assert "Error: me/student: the upload failed" in absent.stderr
    assert "Traceback" not in absent.stderr
    assert (place / "runs" / "distilled" / "publish" / "README.md").is_file()


@pytest.mark.parametrize(
    ("identity", "said", "unsaid"),
    [
        ({"loss.alpha": 0.0}, "trained on labels alone (`loss.alpha` was 0)", "most likely tokens per position"),
        ({"loss.tail": "renormalize"}, "64 most likely tokens per position, as if they were all", "mass of the rest"),
        ({"loss.tail": "none"}, "64 most likely tokens per position, without the mass of the rest", "labels alone"),
        (
            {"targets": "cache", "tail": "shape of rank 16"},
            "approximation of the rest (shape of rank 16)",
            "labels alone",
        ),
        ({"loss.tail": "bucket"}, "64 most likely tokens per position and the mass of the rest", "labels alone"),
        ({"targets": "exact"}, "hidden states and head", "most likely tokens per position"),
    ],
)
def test_the_card_says_what_the_student_learned_from(place, identity, said, unsaid):
    facts = place / "runs" / "distilled" / "run.json"
    content = json.loads(facts.read_text())
    content["identity"] |= identity
    facts.write_text(json.dumps(content))
    done = publish(place, "--dry-run", "--no-evaluation")
    assert done.exit_code == 0, done.output
    card = (place / "runs" / "distilled" / "publish" / "README.md").read_text()
    assert said in card
    assert unsaid not in card
    hard = identity.get("loss.alpha") == 0
    assert ("distilled from" in card) is ("knowledge-distillation" in card) is not hard


def test_the_card_tells_epochs_as_far_as_they_went(place):
    run = place / "runs" / "distilled"
    facts = json.loads((run / "run.json").read_text())
    facts["identity"]["global batch"] = 4
    (run / "run.json").write_text(json.dumps(facts))
    history = json.loads((run / "training_history.json").read_text())
    (run / "training_history.json").write_text(json.dumps([{**history[0], "step": 1}]))
    (run / "publish").mkdir()
    publish(place, "--dry-run", "--no-evaluation")
    assert "| training | 0.04 of 4 epochs, 1 step, learning rate" in (run / "publish" / "README.md").read_text()
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("training:\n", "training:\n  max_steps: 1\n"))
    publish(place, "--dry-run", "--no-evaluation")
    assert "| training | 0.04 epochs, 1 step, learning rate" in (run / "publish" / "README.md").read_text()
