"""Damage for files, drawn from a seeded generator: bytes that change, and trees (JSON, YAML) that
mean something else.

Every function takes the content and a `random.Random` and gives other content, with what was done
in a few words.
"""

import hashlib
import io
import json
import random
import struct
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr
import yaml

from interp.results import checksums, foreign_files, netcdf

BLOCK = 512
"""What disks lose or zero together."""
Damage = tuple[bytes, str]

LONG = "x" * 200_000
SCALARS: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 7, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400),
    *(0.0, -0.0, 0.5, 1e308, 5e-324, float("nan"), float("inf"), float("-inf")),
    *(
        "",
        " ",
        "0",
        "-1",
        "nan",
        "null",
        "yes",
        "1e999",
        "../../out",
        "/etc/passwd",
        "a/b",
        "a\x00b",
        "\x1b[31m",
    ),
    *("[red]", "{}", "%s%n", "=1+1", "日本語", "e\u0301", "\ud800", "\u202e", "a\nb", LONG),
    *([], {}, [[]], {"": {}}, [None], ["a", 1], {"a": 1}),
)
YAML_TEXTS = (
    # A bomb: each of the next makes eight times as many of the one before.
    "a: &a [x, x, x, x, x, x, x, x]\n"
    + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 8)}]\n"
        for old, new in ("ab", "bc", "cd", "de", "ef", "fg")
    ),
    "a: &a [*a]\n",
    "a: &a {b: *a}\n",
    "trace: !!python/object/apply:os.mkdir [hacked]\n",
    "!!python/name:os.system\n",
    "? [1, 2]\n: 3\n",
    "? {a: 1}\n: 3\n",
    "trace:\n  <<: 3\n",
    "trace:\n  <<: [{samples: 3}, 4]\n",
    "trace: {samples: 190:20:30}\n",
    "trace: {samples: 2001-01-01}\n",
    "trace: {samples: !!binary aGFsbG8=}\n",
    "trace: {samples: !!set {a, b}}\n",
    "trace: {samples: .nan, seed: .inf}\n",
    "trace: {samples: 0x" + "f" * 5000 + "}\n",
    "trace: {seed: " + "9" * 6000 + "}\n",
    "trace: " + "[" * 3000 + "]" * 3000 + "\n",
    "trace: " + "{a: " * 3000 + "1" + "}" * 3000 + "\n",
    "".join(f"key{n}: {n}\n" for n in range(20_000)),
    "a: 1\n" * 20_000,
    "trace:\n\tsamples: 3\n",
    "\ufefftrace: {samples: 3}\n",
    "trace: {samples: 3}\n---\ntrace: {samples: 4}\n",
    "trace: '\n",
    "%YAML 9.9\n---\ntrace: {}\n",
    "trace: *unknown\n",
    "- trace\n",
    "just text\n",
    "42\n",
    "null\n",
    "",
)


def damaged(content: bytes, rng: random.Random, others: Sequence[bytes]) -> Damage:
    """Bytes of a file that something happened to: a disk, a transfer, another program."""
    return rng.choice(BYTES)(content, rng, others)


def _flip(content: bytes, rng: random.Random, others: Sequence[bytes]) -> Damage:
    changed, count = bytearray(content), rng.choice((1, 1, 1, 2, 8, 64))
    at = [rng.randrange(len(changed)) for _ in range(count)] if changed else []
    for place in at:
        changed[place] ^= 1 << rng.randrange(8)
    return bytes(changed), f"bits flipped in bytes {at[:4]}"


def _overwrite(content: bytes, rng: random.Random, others: Sequence[bytes]) -> Damage:
    size = rng.choice((1, 2, 4, 8, 16, 100))
    at = rng.randrange(max(len(content) - size, 1))
    filler = rng.choice(
        (b"\x00" * size, b"\xff" * size, b"\x7f" + b"\xff" * (size - 1), rng.randbytes(size))
    )
    return content[:at] + filler + content[at + size :], f"{size} bytes overwritten at {at}"


def _zero_block(content: bytes, rng: random.Random, others: Sequence[bytes]) -> Damage:
    at = rng.randrange(len(content) // BLOCK + 1) * BLOCK
    size = min(BLOCK, len(content) - at)
    return content[:at] + b"\x00" * size + content[at + size :], f"block at {at} zeroed"


def _truncate(content: bytes, rng: random.Random, others: Sequence[bytes]) -> Damage:
    length = rng.choice(
        (0, 1, rng.randrange(len(content) + 1), max(len(content) - rng.randrange(1, 20), 0))
    )
    return content[:length], f"cut to {length} bytes"


def _duplicate(content: bytes, rng: random.Random, others: Sequence[bytes]) -> Damage:
    at, size = rng.randrange(len(content) + 1), rng.choice((1, 16, BLOCK, 4096))
    return content[: at + size] + content[at:], f"{size} bytes at {at} twice"


def _remove(content: bytes, rng: random.Random, others: Sequence[bytes]) -> Damage:
    at, size = rng.randrange(len(content) + 1), rng.choice((1, 16, BLOCK, 4096))
    return content[:at] + content[at + size :], f"{size} bytes at {at} removed"


def _insert(content: bytes, rng: random.Random, others: Sequence[bytes]) -> Damage:
    at, size = rng.randrange(len(content) + 1), rng.choice((1, 3, 64, BLOCK))
    return (
        content[:at] + rng.randbytes(size) + content[at:],
        f"{size} random bytes inserted at {at}",
    )


def _splice(content: bytes, rng: random.Random, others: Sequence[bytes]) -> Damage:
    other = rng.choice(others)
    at = rng.randrange(min(len(content), len(other)) + 1)
    return content[:at] + other[at:], f"another file from byte {at} on"


def _swap_blocks(content: bytes, rng: random.Random, others: Sequence[bytes]) -> Damage:
    blocks = [content[at : at + BLOCK] for at in range(0, len(content), BLOCK)] or [b""]
    first, second = rng.randrange(len(blocks)), rng.randrange(len(blocks))
    blocks[first], blocks[second] = blocks[second], blocks[first]
    return b"".join(blocks), f"blocks {first} and {second} exchanged"


def _noise(content: bytes, rng: random.Random, others: Sequence[bytes]) -> Damage:
    size = rng.choice((1, 8, 100, 5000))
    return rng.randbytes(size), f"{size} random bytes in its place"


BYTES: tuple[Callable[[bytes, random.Random, Sequence[bytes]], Damage], ...] = (
    *(_flip, _flip, _flip, _flip, _overwrite, _overwrite, _zero_block, _zero_block, _truncate),
    *(_duplicate, _remove, _insert, _splice, _swap_blocks, _noise),
)


# -- trees ---------------------------------------------------------------------------------------


def changed_json(content: bytes, rng: random.Random, others: Sequence[bytes]) -> Damage:
    """Another JSON tree; one in eight has text that no tree gives."""
    if rng.random() < 0.125:
        return rng.choice(_JSON_TEXTS)(content), "a text of JSON that no program writes"
    tree, said = changed(json.loads(content), rng)
    return json.dumps(tree, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass"), said


def _repeated_key(content: bytes) -> bytes:
    text = content.decode()
    return text.replace("{", '{"schema": 1, ', 1).encode()


_JSON_TEXTS: tuple[Callable[[bytes], bytes], ...] = (
    lambda content: b"[" * 100_000,
    lambda content: b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    lambda content: content + content,
    lambda content: b"\xef\xbb\xbf" + content,
    lambda content: content.decode().encode("utf-16"),
    lambda content: b"NaN",
    lambda content: b"1" * 10_000,
    lambda content: b'{"schema": ' + b"9" * 10_000 + b"}",
    _repeated_key,
)


def changed_yaml(content: bytes, rng: random.Random, others: Sequence[bytes]) -> Damage:
    """Another YAML tree, or a text with what YAML can do that JSON cannot."""
    if rng.random() < 0.3:
        text = rng.choice(YAML_TEXTS)
        return (
            content + b"\n" + text.encode() if rng.random() < 0.3 else text.encode()
        ), f"YAML {text[:40]!r}"
    tree, said = changed(yaml.safe_load(content), rng)
    return (
        yaml.safe_dump(tree, allow_unicode=rng.random() < 0.5).encode("utf-8", "surrogatepass"),
        said,
    )


def changed(tree: Any, rng: random.Random) -> tuple[Any, str]:
    """A tree with one to three of its nodes changed; the original stays as it is."""
    tree = json.loads(json.dumps(tree, default=str))
    said = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(tree))
        if not places:
            return rng.choice(SCALARS), "another root"
        parent, key, path = rng.choice(places)
        said.append(f"{path}: {_change(parent, key, rng)}")
    return tree, "; ".join(said)


def _places(tree: Any, path: str = "") -> list[tuple[Any, Any, str]]:
    """Every node but the root: what holds it, its key there, and where that is."""
    found: list[tuple[Any, Any, str]] = []
    pairs = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, value in pairs:
        here = f"{path}.{str(key)[:30]}"
        found.append((tree, key, here))
        found += _places(value, here)
    return found


def _change(parent: Any, key: Any, rng: random.Random) -> str:
    how = rng.randrange(8)
    value = parent[key]
    if how == 0:
        del parent[key]
        return "deleted"
    if how == 1 and isinstance(parent, dict):
        other = rng.choice(("", "unknown", str(key).upper(), f"{key} ", "__class__", LONG[:5000]))
        parent[other] = parent.pop(key)
        return f"renamed {other[:20]!r}"
    if how == 2:
        parent[key] = _nested(rng.choice((3, 50, 300)), rng.choice((list, dict)))
        return "nested deeply"
    if how == 3:
        parent[key] = [value] if rng.random() < 0.5 else {"value": value}
        return "wrapped"
    if how == 4:
        parent[key] = str(value)
        return "as text"
    if how == 5 and isinstance(value, list):
        parent[key] = value * rng.choice((2, 100))
        return "repeated"
    if how == 6 and isinstance(value, str):
        at = rng.randrange(len(value) + 1)
        parent[key] = (
            value[:at]
            + rng.choice(("\x00", "\ud83d", "\u202e", "\n", "'", "]", "日", "1"))
            + value[at:]
        )
        return "a character more"
    parent[key] = rng.choice(SCALARS)
    return f"= {str(parent[key])[:30]!r}"


def _nested(depth: int, kind: type) -> Any:
    tree: Any = 1
    for _ in range(depth):
        inner: Any = tree
        tree = [inner] if kind is list else {"a": inner}
    return tree


# -- archives and safetensors --------------------------------------------------------------------


def changed_zip(content: bytes, rng: random.Random, others: Sequence[bytes]) -> Damage:
    """An archive whose members have other names or content."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [
            (info.filename, archive.read(info)) for info in archive.infolist() if not info.is_dir()
        ]
    at = rng.randrange(len(members))
    name, inner = members[at]
    how = rng.randrange(4)
    if how == 0:
        base = name.rsplit("/", 1)[-1]
        name = rng.choice(
            (
                f"../{base}",
                f"/tmp/{base}",
                f"C:\\0\\{base}",
                f"0\\..\\{base}",
                " ",
                f"9/{base}",
                LONG[:9999],
            )
        )
        said = f"member named {name[:30]!r}"
    elif how == 1:
        inner, said = changed_json(inner, rng, others)
    elif how == 2:
        inner, said = damaged(inner, rng, others)
    else:
        inner, said = b" " * 30_000_000, "a member of 30 MB of blanks"
    members[at] = (name, inner)
    if rng.random() < 0.1:
        members.append(members[at])
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for each, data in members:
            archive.writestr(each, data)
    return packed.getvalue(), said


def changed_safetensors(content: bytes, rng: random.Random, others: Sequence[bytes]) -> Damage:
    """Another header: of the tensors, or of what this project keeps there as JSON."""
    size = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    own = header.get("__metadata__", {})
    name = rng.choice(list(own)) if own and rng.random() < 0.6 else None
    if name is not None and own[name].startswith("{"):
        tree, said = changed(json.loads(own[name]), rng)
        own[name] = json.dumps(tree)
    else:
        header, said = changed(header, rng)
    text = json.dumps(header).encode()
    length = rng.choice((2**63, 0, len(text) + 1, 10**9)) if rng.random() < 0.1 else len(text)
    return struct.pack("<Q", length) + text + data, f"header {said}"


# -- damage that the checksum does not show: somebody wrote it -----------------------------------


def resealed_json(content: bytes, rng: random.Random, others: Sequence[bytes]) -> Damage:
    """Another JSON tree, and the checksum of that."""
    tree, said = changed(json.loads(content), rng)
    if isinstance(tree, dict):
        tree[checksums.CHECKSUM] = checksums.checksum(tree)
    return json.dumps(tree).encode(), f"{said}, with its checksum"


def resealed_safetensors(content: bytes, rng: random.Random, others: Sequence[bytes]) -> Damage:
    """Another header of a safetensors file, and the checksum of the whole."""
    size = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    own = header["__metadata__"]
    if rng.random() < 0.8:
        tree, said = changed(json.loads(own["dmle"]), rng)
        own["dmle"] = json.dumps(tree)
    else:
        rest = {name: entry for name, entry in header.items() if name != "__metadata__"}
        tree, said = changed(rest, rng)
        header = {"__metadata__": own, **(tree if isinstance(tree, dict) else {"x": tree})}
    if rng.random() < 0.3:
        data, _ = damaged(data, rng, others)
    own["sha256"] = "0" * 64
    text = json.dumps(header, separators=(",", ":")).encode()
    whole = struct.pack("<Q", len(text)) + text + data
    zeros = b'"sha256":"' + b"0" * 64
    return (
        whole.replace(zeros, b'"sha256":"' + hashlib.sha256(whole).hexdigest().encode(), 1),
        f"header {said}",
    )


def resealed_dataset(content: bytes, rng: random.Random, others: Sequence[bytes]) -> Damage:
    """A dataset with other variables, sizes, numbers or attributes, as its writer would write
    it."""
    with xr.open_dataset(io.BytesIO(content[: -checksums.SEAL_BYTES]), engine="h5netcdf") as opened:
        dataset = opened.load()
    said = []
    for _ in range(rng.choice((1, 1, 2))):
        try:
            dataset, what = rng.choice(DATASETS)(dataset, rng)
            said.append(what)
        except Exception as error:  # xarray itself does not make it
            said.append(f"nothing ({type(error).__name__})")
    try:
        made = bytes(netcdf.content_of(dataset))
        foreign_files.remember(
            hashlib.sha256(made).hexdigest()
        )  # as if it were our own: this process reads it
        return _sealed(made), "; ".join(said)
    except Exception as error:  # nor does NetCDF hold it
        return content, f"nothing ({type(error).__name__})"


def resealed(content: bytes, rng: random.Random, others: Sequence[bytes]) -> Damage:
    """Damaged bytes with a correct checksum: what HDF5 makes of them is seen in a process of its
    own."""
    changed, said = damaged(content[: -checksums.SEAL_BYTES], rng, others)
    return _sealed(changed), f"{said}, with a correct checksum"


def _sealed(content: bytes) -> bytes:
    return content + checksums.SEAL + hashlib.sha256(content).hexdigest().encode() + b"\n"


def _without_variable(dataset: xr.Dataset, rng: random.Random) -> tuple[xr.Dataset, str]:
    name = rng.choice(sorted(map(str, dataset.variables)))
    return dataset.drop_vars(name), f"without {name}"


def _other_numbers(dataset: xr.Dataset, rng: random.Random) -> tuple[xr.Dataset, str]:
    name = rng.choice(sorted(map(str, dataset.variables)))
    values = dataset[name].values.copy()
    filler = rng.choice(
        (np.nan, np.inf, -1, 0, 1e300, 2**31 - 1, True, "", "x\x1b[31m", "日", None)
    )
    flat = values.reshape(-1)
    flat[rng.randrange(max(flat.size, 1)) if rng.random() < 0.5 else slice(None)] = filler
    return dataset.assign({name: (dataset[name].dims, values)}), f"{name} = {filler!r}"


def _other_type(dataset: xr.Dataset, rng: random.Random) -> tuple[xr.Dataset, str]:
    name = rng.choice(sorted(map(str, dataset.variables)))
    kind = rng.choice(("int8", "float64", "complex64", "str", "bool", "datetime64[ns]"))
    return dataset.assign({name: dataset[name].astype(kind)}), f"{name} as {kind}"


def _other_size(dataset: xr.Dataset, rng: random.Random) -> tuple[xr.Dataset, str]:
    dim = rng.choice(sorted(map(str, dataset.sizes)))
    picked = rng.choice(
        (
            [],
            [0],
            [0, 0],
            list(range(dataset.sizes[dim])) * 2,
            list(range(dataset.sizes[dim]))[::-1],
        )
    )
    return dataset.isel({dim: picked}), f"{dim}: {picked[:5]}"


def _other_dims(dataset: xr.Dataset, rng: random.Random) -> tuple[xr.Dataset, str]:
    names = sorted(map(str, dataset.sizes))
    old = rng.choice(names)
    if rng.random() < 0.5:
        return dataset.squeeze(), "without dims of one"
    return dataset.rename({old: "other"}), f"{old} renamed"


def _other_attributes(dataset: xr.Dataset, rng: random.Random) -> tuple[xr.Dataset, str]:
    names = [str(name) for name in dataset.attrs if name != "schema"] or ["new"]
    name = rng.choice(names)
    if rng.random() < 0.3:
        return (
            dataset.assign_attrs({name: "x"})
            .drop_attrs(deep=False)
            .assign_attrs(schema=dataset.schema),
            "no attributes",
        )
    value = rng.choice(
        (
            0,
            -1,
            10**9,
            0.5,
            float("nan"),
            "",
            "{",
            "[red]",
            "x\x1b",
            LONG[:5000],
            [1, 2],
            [0.5],
            "a b",
        )
    )
    return dataset.assign_attrs({name: value}), f"attribute {name} = {str(value)[:30]!r}"


DATASETS: tuple[Callable[[xr.Dataset, random.Random], tuple[xr.Dataset, str]], ...] = (
    *(
        _without_variable,
        _other_numbers,
        _other_numbers,
        _other_type,
        _other_size,
        _other_dims,
        _other_attributes,
    ),
)
