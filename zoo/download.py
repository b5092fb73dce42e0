"""Published weights: from the cache, or downloaded, checked, and cached."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import torch

from .errors import CheckpointError
from .spec import Weights

_HUB_URL = re.compile(r"https://huggingface\.co/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


def fetch(name: str, weights: Weights, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The local file of published ``weights`` of the model ``name``.

    The file is taken from the cache (``cache_dir``, or torch's hub directory) or downloaded into it. Its SHA-256 is
    checked where it is pinned.

    Raises:
        CheckpointError: there are no published weights, they cannot be downloaded, or their checksum differs.
    """
    if not weights.url:
        if weights.hf_hub_id:
            return _from_hub(name, weights.hf_hub_id, "model.safetensors", None, cache_dir)
        raise CheckpointError(
            f"No weights of {name} are published: build it with pretrained=False, or pass your own file as "
            "checkpoint_path=."
        )
    hosted = _HUB_URL.fullmatch(weights.url)
    path = cache_path(weights.url, cache_dir)
    if not path.is_file():
        if hosted:
            path = _from_hub(name, hosted["repo"], hosted["file"], hosted["revision"], cache_dir)
        else:
            _download(name, weights.url, path)
    _check(path, weights)
    return path


def cache_path(url: str, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where a downloaded ``url`` is kept; a file put there by hand is used."""
    folder = Path(cache_dir) if cache_dir else Path(torch.hub.get_dir()) / "checkpoints"
    name = url.rsplit("/", 1)[-1]
    if "." not in name:  # links to shared files have the same end for all of them
        name = f"{hashlib.sha256(url.encode()).hexdigest()[:16]}.pth"
    return folder / name


def _download(name: str, url: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path))
    except Exception as error:  # urllib, socket and ssl raise many kinds
        raise _unreachable(name, url, path, error) from error


def _from_hub(name: str, repo: str, file: str, revision: str | None, cache_dir: str | os.PathLike[str] | None) -> Path:
    from huggingface_hub import hf_hub_download

    url = f"https://huggingface.co/{repo}/resolve/{revision or 'main'}/{file}"
    try:
        folder = None if cache_dir is None else Path(cache_dir)
        return Path(hf_hub_download(repo, file, revision=revision, cache_dir=folder))
    except Exception as error:  # the hub client raises its own, httpx's and OS errors
        raise _unreachable(name, url, cache_path(url, cache_dir), error) from error


def _unreachable(name: str, url: str, path: Path, error: Exception) -> CheckpointError:
    reason = str(error).split("\n", 1)[0] or type(error).__name__
    return CheckpointError(
        f"Weights of {name} could not be downloaded from {url} ({reason}). Go online, or download the file elsewhere "
        f"and put it at {path}, or pass it as checkpoint_path= (in the command line: --checkpoint)."
    )


def _check(path: Path, weights: Weights) -> None:
    if weights.sha256 is None:
        return
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)
    if digest != weights.sha256:
        raise CheckpointError(f"{path} has SHA-256 {digest}, not {weights.sha256}: delete it to download it again.")


def _digest(file: object) -> str:
    digest = hashlib.sha256()
    for block in iter(lambda: file.read(1 << 20), b""):  # type: ignore[attr-defined]
        digest.update(block)
    return digest.hexdigest()
