"""Cores and instruction sets: cgroup files of both versions, the override, a fake cpuinfo."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from handlers.cpu import container_cores, host_isa, threads_per_worker


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.delenv("MARPRESS_THREADS", raising=False)


def cgroup(tmp_path: Path, own: str | None = None, **files: str) -> tuple[Path, Path]:
    """A cgroup root with `files` (`__` stands for a folder, `_dot_` for a dot), and a /proc that names `own`."""
    root, proc = tmp_path / "cgroup", tmp_path / "proc"
    root.mkdir()
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if own is not None:
        (proc / "self").mkdir(parents=True)
        (proc / "self/cgroup").write_text(f"1:name=systemd:/\n0::{own}\n")
    return root, proc


def test_without_cgroup_files_the_affinity_counts(tmp_path):
    assert container_cores(*cgroup(tmp_path)) == 8


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1), ("max 100000", 8), ("1600000 100000", 8)],
)
def test_v2_quota_is_rounded_up(tmp_path, quota, cores):
    assert container_cores(*cgroup(tmp_path, "/", cpu_dot_max=quota + "\n")) == cores


def test_v2_the_tightest_quota_up_to_the_root_counts(tmp_path):
    files = {"cpu_dot_max": "max 100000", "a__cpu_dot_max": "200000 100000", "a__b__cpu_dot_max": "400000 100000"}
    assert container_cores(*cgroup(tmp_path, "/a/b", **files)) == 2


def test_v2_levels_without_a_file_are_passed_over(tmp_path):
    assert container_cores(*cgroup(tmp_path, "/a/b/c", a__cpu_dot_max="300000 100000")) == 3


def test_v2_files_that_make_no_sense_are_no_quota(tmp_path):
    assert container_cores(*cgroup(tmp_path, "/", cpu_dot_max="nonsense")) == 8
    (tmp_path / "cgroup/cpu.max").write_text("some thing")
    assert container_cores(tmp_path / "cgroup", tmp_path / "proc") == 8


def test_v1_quota(tmp_path):
    root, proc = cgroup(tmp_path, cpu__cpu_dot_cfs_quota_us="250000", cpu__cpu_dot_cfs_period_us="100000")
    assert container_cores(root, proc) == 3
    (root / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    assert container_cores(root, proc) == 8
    (root / "cpu,cpuacct").mkdir()
    (root / "cpu/cpu.cfs_quota_us").unlink()
    (root / "cpu,cpuacct/cpu.cfs_quota_us").write_text("100000")
    (root / "cpu,cpuacct/cpu.cfs_period_us").write_text("100000")
    assert container_cores(root, proc) == 1


def test_threads_fill_the_container_and_no_more(monkeypatch):
    monkeypatch.setattr("handlers.cpu.container_cores", lambda: 8)
    assert [threads_per_worker(workers) for workers in (1, 2, 3, 8, 20)] == [8, 4, 2, 1, 1]
    assert threads_per_worker(None) == 1
    monkeypatch.setenv("MARPRESS_THREADS", "3")
    assert threads_per_worker(1) == threads_per_worker(None) == 3
    for nonsense in ("0", "-1", "two", "1.5", ""):
        monkeypatch.setenv("MARPRESS_THREADS", nonsense)
        assert threads_per_worker(2) == 4


def test_instruction_sets(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    assert host_isa(cpuinfo) == []
    cpuinfo.write_text("processor: 0\nflags\t\t: fpu avx2 avx512_vnni avx512fancy\n\nprocessor: 1\nflags : fpu\n")
    assert host_isa(cpuinfo) == ["avx2", "avx512_vnni"]
    cpuinfo.write_text("processor: 0\nFeatures\t: fp asimd asimddp i8mm\n")
    assert host_isa(cpuinfo) == ["asimddp", "i8mm"]
