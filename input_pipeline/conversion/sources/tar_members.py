"""The members of a tar, grouped to samples; each is part of a sample or counted as left out.

The extension of a member is what stands after its last dot, if it is a known one, and its stem all
before it: UIDs with dots are stems. `.jpg.txt` is the text of `.jpg`. A member such as
`000.seg.png`, beside a sample `000`, belongs to that sample and is left out.
"""

import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from input_pipeline.io.files import AnyPath, open_to_read

IMAGES = ("jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp", "gif", "ppm", "dcm", "img")
TEXTS = ("txt", "json", "cls")

_Span = tuple[int, int]  # offset and length in the tar, in bytes
_LONGEST_EXTENSION = 8  # of an unknown one that is named in the counts


@dataclass(frozen=True)
class _Member:
    """A file or link of a known kind; `path` has no `./`."""

    name: str
    path: str
    span: _Span | None
    text: bytes | None = None
    target: str = ""  # of a link


@dataclass
class TarSample:
    """The members of one stem."""

    stem: str
    members: dict[str, list[_Member]] = field(default_factory=dict)  # by extension

    def image(self) -> _Span:
        """Offset and length of the image. Raises ValueError unless there is exactly one."""
        kinds = [kind for kind in self.members if kind in IMAGES]
        if not kinds:
            raise ValueError("no image in the sample")
        if len(kinds) > 1:
            raise ValueError(f"more than one image: {', '.join(kinds)}")
        span = self._only(kinds[0]).span
        assert span is not None, "links were resolved"
        return span

    def text(self, kind: str) -> bytes | None:
        """The content of a text member; None if there is none. Raises ValueError for several."""
        return self._only(kind).text if kind in self.members else None

    def is_whole(self) -> bool:
        """Whether there are both an image and a text."""
        return any(k in IMAGES for k in self.members) and any(k in TEXTS for k in self.members)

    def _only(self, kind: str) -> _Member:
        if len(self.members[kind]) > 1:
            raise ValueError(f"more than one member {self.members[kind][0].name}")
        return self.members[kind][0]


def tar_samples(path: AnyPath, inputs: Counter[str]) -> Iterator[TarSample | str]:
    """The samples of a tar in the order of their first members.

    Args:
      path: an uncompressed tar.
      inputs: receives the number of members, and what became of them.

    Yields:
      Samples, and as the last item a text if the tar is damaged.
    """
    members: list[_Member] = []
    damage = _read(path, members, inputs)
    samples: dict[str, TarSample] = {}
    for member in _resolved(members, inputs):
        stem, kind = _stem_and_kind(member.path)
        folder, _, _ = member.name.rpartition("/")  # as it is written, which ids keep
        shown = posixpath.basename(stem)
        sample = samples.setdefault(stem, TarSample(f"{folder}/{shown}" if folder else shown))
        sample.members.setdefault(kind, []).append(member)
    for stem, sample in samples.items():
        number = sum(map(len, sample.members.values()))
        if not sample.is_whole() and _belongs_to_another(stem, samples):
            inputs["members left out: more than the image and text of a sample"] += number
            continue
        inputs["members of samples"] += number
        yield sample
    if damage:
        yield damage


def _read(path: AnyPath, members: list[_Member], inputs: Counter[str]) -> str:
    """Appends the members of known kinds; returns what is wrong with the tar, "" for nothing."""
    try:
        # "r:": offsets mean nothing in a compressed tar
        with open_to_read(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (info := tar.next()) is not None:
                # Otherwise all headers stay in memory. Typeshed lacks the attribute.
                tar.members.clear()  # type: ignore[attr-defined]
                member = _member(tar, info)
                inputs["members"] += 1
                if isinstance(member, str):
                    inputs[f"members left out: {member}"] += 1
                else:
                    members.append(member)
            # tarfile takes a truncated header for the end; a true end is a block of zeros.
            tar.fileobj.seek(tar.offset)
            complete = tar.fileobj.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
        return "" if complete else "the tar is cut off: it has no end mark"
    except (tarfile.TarError, OSError) as error:
        return f"the tar is damaged or cut off: {error}"


def _member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> _Member | str:
    """A member, or why it is left out."""
    path = posixpath.normpath(info.name).lstrip("/")
    parts = [part for part in path.split("/") if part]
    if info.isdir():
        return "folders"
    if "__MACOSX" in parts or any(part[0] == "." and part != ".." for part in parts):
        return "hidden files"
    if info.islnk():
        return _Member(info.name, path, None, target=posixpath.normpath(info.linkname).lstrip("/"))
    if info.issym():
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), info.linkname))
        return _Member(info.name, path, None, target=target)
    if not info.isfile() or info.issparse():
        return "devices and sparse files"
    kind = _stem_and_kind(path)[1]
    text = None
    if kind in TEXTS:
        content = tar.extractfile(info)
        assert content is not None, info.name  # a regular file
        text = content.read()
    return _Member(info.name, path, (info.offset_data, info.size), text)


def _resolved(members: list[_Member], inputs: Counter[str]) -> Iterator[_Member]:
    """Members with a known extension; links with the content of what they lead to."""
    by_path = {member.path: member for member in members}
    for member in members:
        kind = _stem_and_kind(member.path)[1]
        if not kind:
            inputs[f"members left out: {_unknown(member.path)}"] += 1
            continue
        target: _Member | None = member
        for _ in range(len(by_path) if member.target else 0):  # links may lead to links, or around
            target = by_path.get(target.target) if target and target.target else target
            if target is None or not target.target:
                break
        if target is None or target.target or (kind in TEXTS and target.text is None):
            inputs["members left out: links to what is not in the tar"] += 1
            continue
        yield _Member(member.name, member.path, target.span, target.text)


def _stem_and_kind(path: str) -> tuple[str, str]:
    """(path without the extension, known extension in lower case); (path, "") for others."""
    stem, _, kind = path.rpartition(".")
    kind = kind.lower()
    if not posixpath.basename(stem) or "/" in kind or kind not in (*IMAGES, *TEXTS):
        return path, ""
    inner, _, inner_kind = stem.rpartition(".")
    if kind in TEXTS and inner_kind.lower() in IMAGES and posixpath.basename(inner):
        return inner, kind
    return stem, kind


def _unknown(path: str) -> str:
    extension = posixpath.splitext(path)[1].lower()
    named = extension[1:].isalnum() and extension[1:2].isalpha()
    short = named and len(extension) <= _LONGEST_EXTENSION
    return f"extension {extension}" if short else "no known extension"


def _belongs_to_another(stem: str, samples: dict[str, TarSample]) -> bool:
    """Whether the stem is that of another sample with a word behind it: `000.seg`."""
    other, _, word = stem.rpartition(".")
    while other and "/" not in word:
        if other in samples and word[:1].isalpha():
            return True
        other, _, word = other.rpartition(".")
    return False
