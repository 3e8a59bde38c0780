"""Fetch the public data sets into DATA_ROOT, each file whole or not at all.

A file is written under a temporary name in its own folder, compared with its checksum and renamed,
so a killed download never looks like a file; the next one removes what it left. Addresses and
checksums are those of torchvision and scikit-learn, read from the installed packages. A mirror
replaces all addresses and has the layout of DATA_ROOT: ``<mirror>/MNIST/raw/...``.

Public names: `fetch`, `unpack`, `PublicSet`, `RemoteFile`, `public_sets`, `fetch_sets`, `Outcome`,
`DownloadError`.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib.data import cifar10, fashion_mnist, idx, mnist
from lib.data.base import DamagedData, MissingData, verify_file

CHUNK = 1 << 16  # bytes
TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two pieces


class DownloadError(OSError):
    """A file that could not be fetched, and why, in one sentence."""


@dataclass(frozen=True)
class RemoteFile:
    """One file of a public set."""

    urls: tuple[str, ...]  # tried in order
    target: str  # below DATA_ROOT
    digest: str  # "md5:<hex>" or "sha256:<hex>"


@dataclass(frozen=True)
class PublicSet:
    """One public set: what to fetch, and how to tell that it is there."""

    name: str
    files: tuple[RemoteFile, ...]
    check: Callable[[Path], str]  # verifies what is there, names it; raises Missing/DamagedData
    finish: Callable[[Path], None]  # unpacks what was fetched


@dataclass(frozen=True)
class Outcome:
    """What became of one set."""

    name: str
    ok: bool
    text: str


def fetch(
    urls: Sequence[str],
    target: Path,
    digest: str,
    *,
    attempts: int = 3,
    wait: float = 1.0,
    timeout: tuple[float, float] = TIMEOUT,
) -> None:
    """Fetch one file, unless a whole one is there; one process at a time per target.

    Args:
        urls: addresses of the same file, tried in order.
        target: where it goes; only ever a file with the right checksum.
        digest: ``"md5:<hex>"`` or ``"sha256:<hex>"``.
        attempts: per address; a refusal (4xx) or a wrong checksum is not tried again.
        wait: seconds before the second attempt, twice as long before the third, and so on.
        timeout: seconds to connect, and to wait for the next piece.

    Raises:
        DownloadError: with the reason of the last address.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f"{target.name}.*.part"):
        leftover.unlink()
    if target.is_file():
        try:
            return verify_file(target, digest)
        except DamagedData:
            pass  # replaced below, once a whole one is here
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    failure = DownloadError(f"{target.name}: no address to fetch it from")
    for url in urls:
        for attempt in range(attempts):
            try:
                _transfer(url, part, digest, timeout)
                return os.replace(part, target)
            except _Refused as error:
                failure = error
                break
            except DownloadError as error:
                failure = error
                if attempt + 1 < attempts:
                    time.sleep(wait * 2**attempt)
            finally:
                part.unlink(missing_ok=True)
    raise failure


class _Refused(DownloadError):
    """A failure that another attempt at the same address would not mend."""


def _transfer(url: str, part: Path, digest: str, timeout: tuple[float, float]) -> None:
    """Write what ``url`` serves to ``part`` and verify it."""
    import pooch
    import requests
    from tqdm import tqdm

    name = part.name.rsplit(".", 2)[0]
    # A server that compresses on the fly would make the checksum that of another file.
    headers = {"Accept-Encoding": "identity"}
    # total=1 until the server says: pooch asks whether the bar is true, and one without is not
    with tqdm(desc=name, total=1, unit="B", unit_scale=True, leave=False, disable=None) as bar:
        get = pooch.HTTPDownloader(
            progressbar=bar, chunk_size=CHUNK, timeout=timeout, headers=headers
        )
        try:
            get(url, str(part), None)
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            final = 400 <= status < 500 and status not in (408, 429)  # these two say "later"
            failure = _Refused if final else DownloadError
            raise failure(f"{name}: the server answered {status} for {url}") from error
        except requests.RequestException as error:
            size = part.stat().st_size if part.is_file() else 0
            if size:
                raise DownloadError(
                    f"{name}: truncated, the connection to {url} ended after {size:,} bytes"
                ) from error
            raise DownloadError(
                f"{name}: cannot reach {url} ({type(error).__name__}); check the network, "
                "or set DATA_MIRROR to a copy"
            ) from error
        except OSError as error:
            raise _Refused(f"{name}: cannot write in {part.parent}: {error.strerror}") from error
    try:
        verify_file(part, digest)
    except DamagedData as error:
        kind, _, wanted = digest.partition(":")
        raise _Refused(
            f"{name}: what {url} serves ({part.stat().st_size:,} bytes) is truncated or another "
            f"version: its {kind} is not {wanted}"
        ) from error


def unpack(archive: Path, member: str, target: Path) -> None:
    """Unpack folder ``member`` of a tar file as ``target``, whole or not at all.

    Raises:
        DownloadError: a damaged archive, one that writes outside its folder, or without `member`.
    """
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with tarfile.open(archive) as file:
            file.extractall(part, filter="data")
        if not (part / member).is_dir():
            raise DownloadError(f"{archive.name} holds no folder {member}; delete it and try again")
        shutil.rmtree(target, ignore_errors=True)
        os.replace(part / member, target)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DownloadError(f"{archive.name} cannot be unpacked: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def public_sets() -> tuple[PublicSet, ...]:
    """CIFAR-10, MNIST, Fashion-MNIST and California housing."""
    return (_cifar10(), _idx(mnist.ABOUT), _idx(fashion_mnist.ABOUT), _housing())


def fetch_sets(
    root: Path,
    sets: Sequence[PublicSet],
    *,
    mirror: str = "",
    attempts: int = 3,
    wait: float = 1.0,
) -> Iterator[Outcome]:
    """Fetch what is missing of each set; a set that fails does not stop the others.

    Args:
        root: DATA_ROOT, made if need be.
        sets: usually `public_sets()`.
        mirror: base address that replaces all others; below it the layout of ``root``.
        attempts, wait: as in `fetch`.
    """
    for public in sets:
        try:
            text = _fetch_set(root, public, mirror.rstrip("/"), attempts, wait)
            yield Outcome(public.name, True, text)
        except (DownloadError, MissingData, DamagedData) as error:
            yield Outcome(public.name, False, str(error))
        except OSError as error:
            yield Outcome(
                public.name, False, f"cannot write in DATA_ROOT ({root}): {error.strerror or error}"
            )


def _fetch_set(root: Path, public: PublicSet, mirror: str, attempts: int, wait: float) -> str:
    from filelock import FileLock, Timeout

    try:
        return f"already there and verified ({public.check(root)})"
    except (MissingData, DamagedData):
        pass
    root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(root / f".{public.name}.lock", timeout=0):
            for file in public.files:
                urls = [f"{mirror}/{file.target}"] if mirror else file.urls
                fetch(urls, root / file.target, file.digest, attempts=attempts, wait=wait)
            public.finish(root)
            return f"downloaded and verified ({public.check(root)})"
    except Timeout as error:
        raise DownloadError("another process is fetching this set; wait for it") from error


def _cifar10() -> PublicSet:
    from torchvision.datasets import CIFAR10

    archive = RemoteFile((CIFAR10.url,), CIFAR10.filename, f"md5:{CIFAR10.tgz_md5}")

    def check(root: Path) -> str:
        return "original pixels" if cifar10.locate(root) == cifar10.BATCHES else "JPEG pixels"

    def finish(root: Path) -> None:
        unpack(root / archive.target, CIFAR10.base_folder, root / cifar10.BATCHES)
        (root / archive.target).unlink()

    return PublicSet("CIFAR-10", (archive,), check, finish)


def _idx(about: idx.IdxSet) -> PublicSet:
    from torchvision import datasets

    source = getattr(datasets, about.folder)
    files = tuple(
        RemoteFile(
            tuple(base + name for base in source.mirrors),
            f"{about.folder}/raw/{name}",
            f"md5:{md5}",
        )
        for name, md5 in source.resources
    )

    def check(root: Path) -> str:
        return f"{len(idx.locate(about, root))} files"

    return PublicSet(about.name, files, check, lambda root: None)


def _housing() -> PublicSet:
    from sklearn.datasets import _california_housing as source
    from sklearn.datasets import fetch_california_housing

    remote = source.ARCHIVE
    archive = RemoteFile((remote.url,), remote.filename, f"sha256:{remote.checksum}")

    def check(root: Path) -> str:
        from lib.data import housing

        return f"{housing.load(root).provenance.n:,} rows"

    def finish(root: Path) -> None:
        # scikit-learn converts the archive that it finds; in a folder of its own, because a kill
        # while it writes would leave half a file under the final name.
        home = root / ".cal_housing.part"
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        os.replace(root / archive.target, home / archive.target)
        fetch_california_housing(data_home=home)
        for made in home.glob("cal_housing*.pkz"):
            os.replace(made, root / made.name)
        shutil.rmtree(home)

    return PublicSet("California housing", (archive,), check, finish)
