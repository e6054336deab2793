"""What is published and how: workflows call the scripts that are here; version, changelog and citation agree."""

import re
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "workflows").glob("*.yml")}


def steps(workflow):
    return [step for job in WORKFLOWS[workflow]["jobs"].values() for step in job["steps"]]


def test_workflows_call_what_is_here():
    called = {
        words[0]: words[1:] for name in WORKFLOWS for step in steps(name) if (words := step.get("run", "").split())
    }
    assert {".ci/run", ".ci/lowest", ".ci/release"} <= called.keys()
    for name in WORKFLOWS:
        for step in steps(name):
            for path in re.findall(r"(?:\.ci|tests)/[\w./]+", step.get("run", "")):
                assert (ROOT / path).exists(), path


def test_only_publishing_may_publish():
    jobs = WORKFLOWS["release"]["jobs"]
    assert [name for name, job in jobs.items() if "permissions" in job] == ["publish"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert jobs["publish"]["if"] == "github.ref_type == 'tag'"
    assert "secrets." not in (ROOT / ".github" / "workflows" / "release.yml").read_text()


def test_a_tag_is_checked_against_changelog_and_citation(tmp_path):
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "release").write_bytes((ROOT / ".ci" / "release").read_bytes())
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.0\n")
    (tmp_path / "CITATION.cff").write_text("version: 1.2.0\n")

    def tag(name):
        return subprocess.run(["bash", tmp_path / ".ci" / "release", "tag", name], capture_output=True, text=True)

    assert tag("v1.2.0").returncode == 0
    assert (tag("v1.2").returncode, tag("v1.3.0").returncode) == (1, 1)
    assert "no section ## 1.3.0" in tag("v1.3.0").stderr
    (tmp_path / "CITATION.cff").write_text("version: 1.1.0\n")
    assert "not of version 1.2.0" in tag("v1.2.0").stderr


def test_the_citation_is_one():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "version", "date-released", "license"} <= citation.keys()
    assert citation["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")


def test_every_python_that_is_named_is_allowed():
    named = {
        step["with"]["python-version"]
        for name in WORKFLOWS
        for step in steps(name)
        if "python-version" in step.get("with", {})
    }
    metadata = (ROOT / "pyproject.toml").read_text()
    allowed = set(re.findall(r"Programming Language :: Python :: (3\.\d+)", metadata))
    assert named <= allowed
    assert re.search(r'requires-python = ">=(.*)"', metadata)[1] == min(allowed, key=lambda v: int(v[2:]))
