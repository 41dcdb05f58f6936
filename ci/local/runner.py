"""Running jobs: a fresh copy of the working tree each, the steps' own shell text, outputs as on GitHub."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ci.console import Narrator, format_seconds
from ci.local import actions
from ci.local.actions import Place
from ci.local.expressions import as_text, evaluate, expand, truth
from ci.local.workflow import Workflow, entries, needs_of
from flash_attn3_sm121.errors import CompileError, UsageError

DONE, FAILED, NOT_HERE = "done", "FAILED", "not here"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the summary."""

    job: str
    step: str
    state: str
    seconds: float
    about: str = ""


@dataclass(kw_only=True)
class LocalRun:
    """One run of a workflow. Grows `lines`, `outputs` and `failed` as jobs end; everything else stays as given."""

    workflow: Workflow
    tree: Path  # the working tree to copy
    folder: Path  # of this run
    narrate: Narrator
    jobs: frozenset[str] = frozenset()  # only these; empty means all
    cross: frozenset[str] = frozenset()  # jobs whose steps cross-compile: run whatever machine they ask for
    lines: list[Line] = field(default_factory=list)
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)

    def run(self) -> bool:
        """All jobs in order; what needs a failed job is not run. True if nothing failed."""
        for name, job in self.workflow.jobs.items():
            if self.jobs and name not in self.jobs:
                continue
            broken = [need for need in needs_of(job) if need in self.failed]
            if broken:
                self.failed.add(name)
                self._note(name, "", NOT_HERE, about=f"needs {', '.join(broken)}")
            elif "uses" in job:
                self._note(name, "", NOT_HERE, about=f"calls {job['uses']}: run that file")
            else:
                self._job(name, job)
        return not self.failed

    def _note(self, job: str, step: str, state: str, *, seconds: float = 0.0, about: str = "") -> None:
        self.lines.append(Line(job=job, step=step, state=state, seconds=seconds, about=about))

    def _context(self) -> dict[str, Any]:
        github = {"event_name": "workflow_dispatch", "ref": "refs/heads/local", "ref_name": "local", "sha": "0" * 40}
        return {
            "github": {**github, "repository": "local/local", "workflow": self.workflow.path.stem, "run_id": "0"},
            "inputs": self.workflow.inputs,
            "vars": {},
            "secrets": {},
            "needs": {name: {"outputs": values, "result": "success"} for name, values in self.outputs.items()},
            "runner": {"os": "Linux", "arch": "ARM64" if platform.machine() == "aarch64" else "X64"},
        }

    def _job(self, name: str, job: Mapping[str, Any]) -> None:
        context = self._context()
        if not truth(evaluate(_bare(job.get("if", "true")), context)):
            self._note(name, "", NOT_HERE, about=f"its condition is false: {job['if']}")
            return
        for index, entry in enumerate(entries(job, context)):
            self._instance(name, job, entry, {**context, "matrix": entry}, index)

    def _instance(
        self, name: str, job: Mapping[str, Any], entry: Mapping[str, Any], context: dict[str, Any], index: int
    ) -> None:
        title = f"{name} ({entry.get('name') or ', '.join(map(str, entry.values()))})" if entry else name
        wanted = str(expand(job["runs-on"], context))
        if name not in self.cross and ("arm" in wanted) != (platform.machine() == "aarch64"):
            self._note(title, "", NOT_HERE, about=f"wants {wanted}")
            return
        root = self.folder / f"{name}-{index}"
        place = Place(workspace=root / "work", temp=root / "temp", artifacts=self.folder / "artifacts")
        place.temp.mkdir(parents=True)
        _copy_tree(self.tree, place.workspace)
        self.narrate.note(f"=== job {title}")
        runner = {**context["runner"], "temp": str(place.temp)}
        context |= {
            "runner": runner,
            "github": {**context["github"], "workspace": str(place.workspace)},
            "steps": {},
            "env": {**expand(self.workflow.env, context)},
        }
        context["env"] |= expand(job.get("env") or {}, context)
        extra: dict[str, str] = {}
        for number, step in enumerate(job["steps"]):
            if not self._step(title, step, number, context, place, extra):
                self.failed.add(name)
                return
        outputs = expand(job.get("outputs") or {}, context)
        self.outputs.setdefault(name, {}).update(outputs)

    def _step(
        self,
        title: str,
        step: Mapping[str, Any],
        number: int,
        context: dict[str, Any],
        place: Place,
        extra: dict[str, str],
    ) -> bool:
        label = str(step.get("name") or step.get("uses") or str(step.get("run", "")).splitlines()[0])
        if not truth(evaluate(_bare(step.get("if", "true")), context)):
            self._note(title, label, NOT_HERE, about=f"its condition is false: {step['if']}")
            return True
        begun = time.monotonic()
        self.narrate.note(f"--- {title}: {label}")
        try:
            if "uses" in step:
                done, about = actions.perform(step["uses"], expand(step.get("with") or {}, context), place)
                state = DONE if done else NOT_HERE
            else:
                about, state = self._shell(step, number, context, place, extra), DONE
        except (CompileError, UsageError, subprocess.CalledProcessError) as error:
            about, state = str(error), FAILED
            self.narrate.note(f"{FAILED}: {error}")
        self._note(title, label, state, seconds=time.monotonic() - begun, about=about)
        return state != FAILED

    def _shell(
        self, step: Mapping[str, Any], number: int, context: dict[str, Any], place: Place, extra: dict[str, str]
    ) -> str:
        if step.get("shell", "bash") != "bash":
            raise UsageError(f"a step with shell {step['shell']}: only bash is known here")
        files = {key: place.temp / f"{key}-{number}" for key in ("GITHUB_OUTPUT", "GITHUB_ENV", "GITHUB_STEP_SUMMARY")}
        for path in files.values():
            path.touch()
        values = {**context["env"], **extra, **expand(step.get("env") or {}, context)}
        env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
        env |= {key: as_text(value) for key, value in values.items()}
        env |= {key: str(path) for key, path in files.items()} | {"RUNNER_TEMP": str(place.temp), "CI": "true"}
        env["GITHUB_WORKSPACE"] = str(place.workspace)
        env["PATH"] = f"{place.venv / 'bin'}{os.pathsep}{env['PATH']}"
        script = place.temp / f"step-{number}.sh"
        script.write_text(as_text(expand(step["run"], context)), encoding="utf-8")
        cwd = place.workspace / str(expand(step.get("working-directory", "."), context))
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)]
        done = subprocess.run(command, cwd=cwd, env=env, check=False)
        if done.returncode != 0:
            raise CompileError(f"exit code {done.returncode} of:\n{script.read_text(encoding='utf-8').rstrip()}")
        extra |= _pairs(files["GITHUB_ENV"])
        if "id" in step:
            context["steps"][step["id"]] = {"outputs": _pairs(files["GITHUB_OUTPUT"])}
        return ""

    def summary(self) -> str:
        rows = [f"{line.state:9} {format_seconds(line.seconds):>10}  {_said(line)}" for line in self.lines]
        count = sum(line.state == DONE for line in self.lines)
        away = sum(line.state == NOT_HERE for line in self.lines)
        end = f"FAILED: {', '.join(sorted(self.failed))}" if self.failed else "passed"
        return "\n".join([*rows, f"{count} done, {away} not here; {end}"]) + "\n"


def _said(line: Line) -> str:
    about = line.about.splitlines()[0] if line.about else ""
    return ": ".join(part for part in (line.job, line.step) if part) + (f" [{about}]" if about else "")


def _bare(condition: object) -> str:
    """A condition without its optional braces."""
    text = as_text(condition).strip()
    return text[3:-2] if text.startswith("${{") and text.endswith("}}") else text


def _pairs(path: Path) -> dict[str, str]:
    """`name=value` lines. The form with a delimiter is not used by our workflows and is refused."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, equals, value = line.partition("=")
        if not equals or "<<" in name:
            raise UsageError(f"{path.name}: expected name=value, found {line!r}")
        found[name] = value
    return found


def _copy_tree(tree: Path, target: Path) -> None:
    """What a checkout would hold: files that git tracks, and new ones that it does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=tree,
        check=True,
        capture_output=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (tree / name).is_file():
            copy = target / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(tree / name, copy)
