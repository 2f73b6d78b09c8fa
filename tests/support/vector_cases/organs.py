"""Organ files: whoever signs one of these means harm, or made a mistake."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.support.second_writer import organ_file, tensor_file

WHOLE = organ_file()
HEAD, DATA = WHOLE[8:-32], WHOLE[-32:]
MALFORMED = "organ-malformed"
BITS = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
DTYPES = ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0"]
DTYPES += ["I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"]


@dataclass(frozen=True, kw_only=True)
class OrganCase:
    """An organ file, and how opening it ends; None: it opens. `span` is the passport's."""

    name: str
    about: str
    code: str | None
    organ: bytes
    span: tuple[int, int] = (2, 4)


def cases() -> Iterator[OrganCase]:
    """Every rule of the header profile, the manifest and the numbers."""
    for name, about, old, new in EDITED:
        assert old in HEAD, name
        yield OrganCase(name=name, about=about, code=MALFORMED, organ=tensor_file(HEAD.replace(old, new, 1), DATA))
    for name, about, organ in MADE:
        yield OrganCase(name=name, about=about, code=MALFORMED, organ=organ)
    yield OrganCase(name="layer-missing", about="A span of three, tensors for two.", code=MALFORMED,
                    organ=organ_file(manifest={"span": [2, 5]}), span=(2, 5))  # fmt: skip
    for dtype, value in NOT_FINITE:
        name = f"not-finite-{dtype}-{value}".lower().replace("_", "-")
        yield OrganCase(name=name, about="NaN or infinity.", code="organ-not-finite", organ=last(dtype, value))
    for dtype, value in ABSURD:
        name = f"absurd-{dtype}-{value}".lower()
        yield OrganCase(name=name, about="2^17 or more.", code="organ-absurd", organ=last(dtype, value))
    for dtype, value in LARGEST:
        name = f"finite-{dtype}".lower().replace("_", "-")
        yield OrganCase(name=name, about="The largest number there is.", code=None, organ=last(dtype, value))
    yield OrganCase(name="every-dtype", about="All sixteen.", code=None, organ=every_dtype())
    shapes = {"layers.0.a": tensor("F32", [], 32), "layers.1.b": tensor("U8", [1, 1, 1, 2, 1, 1, 1, 1], 36)}
    yield OrganCase(name="shapes-of-none-and-eight", about="Limits.", code=None, organ=added(shapes, bytes(6)))
    yield OrganCase(name="header-with-trailing-spaces", about="As the library pads it.", code=None,
                    organ=tensor_file(HEAD + b"     ", DATA))  # fmt: skip
    yield OrganCase(name="layer-number-in-front", about="0.weight, and 00001.", code=None, organ=added(
        {"0.weight": tensor("U8", [1], 32), "x.00001.weight": tensor("U8", [1], 33)}, bytes(2)))  # fmt: skip


def tensor(dtype: str, shape: list[Any], begin: int) -> dict[str, Any]:
    """An entry; its size follows from dtype and shape."""
    size = BITS.get(dtype, 1)
    for dimension in shape:
        size *= dimension
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + size]}


def added(tensors: dict[str, Any], data: bytes) -> bytes:
    """The honest organ with more tensors."""
    return organ_file(tensors=tensors, data=DATA + data)


def last(dtype: str, value: str) -> bytes:
    """The honest organ with one more number."""
    return added({"layers.1.x": tensor(dtype, [1], 32)}, bytes.fromhex(value))


def every_dtype() -> bytes:
    """One tensor of two zeros for each dtype."""
    tensors: dict[str, Any] = {}
    at = 32
    for number, dtype in enumerate(DTYPES):
        tensors[f"layers.{number % 2}.{dtype}"] = entry = tensor(dtype, [2], at)
        at = entry["data_offsets"][1]
    return added(tensors, bytes(at - 32))


# fmt: off
EDITED = [
    ("leading-space", "A space before the brace.", b"{", b" {"),
    ("duplicate-tensor", "A tensor twice.", b'{"__metadata__"', b'{"layers.0.mlp.up_proj.weight":{},"__metadata__"'),
    ("duplicate-inner-key", "dtype twice.", b'"dtype":"F32"', b'"dtype":"F16","dtype":"F32"'),
    ("duplicate-metadata", "Metadata twice.", b'{"__metadata__"', b'{"__metadata__":{},"__metadata__"'),
    ("entry-extra-field", "A field more in a tensor.", b'"dtype":"F32"', b'"dtype":"F32","more":1'),
    ("entry-without-dtype", "A field fewer.", b'"dtype":"F32",', b""),
    ("dtype-unknown", "F4.", b'"F32"', b'"F4"'),
    ("dtype-lower-case", "f32.", b'"F32"', b'"f32"'),
    ("name-of-a-path", "../ in a name.", b"layers.0.mlp", b"../layers.0.mlp"),
    ("name-with-a-nul", "A NUL in a name.", b"layers.0.mlp", b"layers.0.\\u0000mlp"),
    ("name-beginning-with-a-dot", "A hidden file's name.", b"layers.0.mlp", b".layers.0.mlp"),
    ("name-too-long", "256 characters.", b"layers.0.mlp.up_proj.weight", b"layers.0." + b"x" * 247),
    ("offset-a-fraction", "16.0.", b"[0,16]", b"[0,16.0]"),
    ("offset-negative", "-16.", b"[0,16]", b"[-16,0]"),
    ("offset-above-its-limit", "2^48 + 1.", b"[16,32]", b"[16,281474976710657]"),
    ("offsets-of-three", "Three numbers.", b"[0,16]", b"[0,8,16]"),
    ("hole", "A gap between tensors.", b"[16,32]", b"[20,36]"),
    ("overlap", "Two tensors share bytes.", b"[16,32]", b"[12,28]"),
    ("alias", "Two tensors are the same bytes.", b"[16,32]", b"[0,16]"),
    ("end-before-begin", "begin after end.", b"[0,16]", b"[16,0]"),
    ("shape-does-not-fit", "More elements than bytes.", b'"shape":[2,2]', b'"shape":[2,3]'),
    ("shape-a-boolean", "true for 1.", b'"shape":[2,2]', b'"shape":[true,4]'),
    ("shape-negative", "-2 by -2.", b'"shape":[2,2]', b'"shape":[-2,-2]'),
    ("shape-overflows", "2^64 elements, which would wrap to none.",
     b'"shape":[2,2]', b'"shape":[65536,65536,65536,65536]'),
    ("shape-of-5000-digits", "A number that is slow to read.", b'"shape":[2,2]', b'"shape":[' + b"9" * 5000 + b"]"),
    ("nested-too-deep", "An array 20 deep.", b'"shape":[2,2]', b'"shape":' + b"[" * 20 + b"]" * 20),
    ("not-utf-8", "A byte that is not UTF-8.", b"up_proj", b"up_\xff"),
]
MADE = [
    ("of-seven-bytes", "Shorter than the length.", b"seven b"),
    ("length-zero", "A header of no bytes.", bytes(8) + WHOLE[8:]),
    ("length-beyond-the-file", "A header longer than the file.", len(WHOLE).to_bytes(8, "little") + WHOLE[8:]),
    ("length-of-2-to-the-64", "A length of 2^64 - 1.", b"\xff" * 8 + WHOLE[8:]),
    ("length-big-endian", "The other byte order.", len(HEAD).to_bytes(8, "big") + WHOLE[8:]),
    ("header-a-list", "A list.", tensor_file(b"[]", b"")),
    ("header-cut", "The last brace is missing.", tensor_file(HEAD[:-1], DATA)),
    ("pickle", "A pickle.", b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00" + b"\x8c\x05posix." * 20),
    ("zip", "A zip file's first bytes.", b"PK\x03\x04" + bytes(200)),
    ("hole-with-its-bytes", "A gap that is there in the data.",
     tensor_file(HEAD.replace(b"[16,32]", b"[20,36]"), DATA + bytes(4))),
    ("overlap-that-fits", "Two tensors share bytes, and the data ends where they do.",
     tensor_file(HEAD.replace(b"[16,32]", b"[12,28]"), DATA[:28])),
    ("alias-that-fits", "Two tensors are all of the data, twice.",
     tensor_file(HEAD.replace(b"[16,32]", b"[0,16]"), DATA[:16])),
    ("trailing-bytes", "A byte after the last tensor.", WHOLE + b"\0"),
    ("data-cut", "A byte of the last tensor is missing.", WHOLE[:-1]),
    ("shape-with-a-zero", "An empty tensor.", added({"layers.0.x": tensor("F32", [0], 32)}, b"")),
    ("shape-of-nine", "Nine dimensions.", added({"layers.0.x": tensor("U8", [1] * 9, 32)}, b"\0")),
    ("tensors-none", "Metadata and nothing else.", tensor_file(b'{"__metadata__":{"not-fed":"{}"}}', b"")),
    ("entry-a-list", "A list for a tensor.", added({"layers.0.x": ["U8", [1], [32, 33]]}, b"\0")),
    ("metadata-missing", "No manifest.", organ_file(metadata={})),
    ("metadata-a-list", "A list.", organ_file(metadata=["not-fed"])),
    ("metadata-of-two", "A second key.", organ_file(metadata={"not-fed": "{}", "format": "pt"})),
    ("metadata-a-number", "A number.", organ_file(metadata={"not-fed": 7})),
    ("metadata-too-long", "More than 4,096 bytes.",
     organ_file(manifest={"blood_type": {"family": "llama", "x": "y" * 4096}})),
    ("metadata-too-many", "65 entries.", organ_file(metadata={f"k{number}": "" for number in range(65)})),
    ("manifest-text", "Not JSON.", organ_file(metadata={"not-fed": "hello"})),
    ("manifest-a-list", "A list.", organ_file(metadata={"not-fed": "[]"})),
    ("manifest-another-format", "not-fed.organ/2.", organ_file(manifest={"format": "not-fed.organ/2"})),
    ("manifest-extra-field", "A field more.", organ_file(manifest={"more": 1})),
    ("manifest-training-text", "Text for an object.", organ_file(manifest={"training": "in-place"})),
    ("manifest-without-family", "A blood type without one.", organ_file(manifest={"blood_type": {}})),
    ("manifest-span-empty", "No layer.", organ_file(manifest={"span": [2, 2]})),
    ("manifest-span-a-fraction", "2.0.", organ_file(manifest={"span": [2.0, 4]})),
    ("layer-outside-the-span", "A third layer.", added({"layers.2.x": tensor("U8", [1], 32)}, b"\0")),
    ("layer-outside-for-one-inside", "As many layers as the span has, but not those.",
     tensor_file(HEAD.replace(b"layers.1.", b"layers.2."), DATA)),
    ("metadata-of-two-with-a-manifest", "A second key beside a good manifest.",
     tensor_file(HEAD.replace(b'{"not-fed":', b'{"format":"pt","not-fed":'), DATA)),
    ("tensor-of-no-layer", "An embedding.", added({"embed.weight": tensor("U8", [1], 32)}, b"\0")),
    ("tensor-of-a-six-digit-layer", "100000, of which five digits are no number.",
     added({"layers.100000.x": tensor("U8", [1], 32)}, b"\0")),
]
NOT_FINITE = [
    ("F64", "000000000000f87f"), ("F64", "000000000000f0ff"), ("F32", "000080ff"), ("F32", "0100807f"), ("F16", "007c"),
    ("F16", "01fc"), ("BF16", "c07f"), ("BF16", "80ff"), ("F8_E5M2", "fc"), ("F8_E5M2", "7d"), ("F8_E4M3", "ff"),
    ("F8_E4M3", "7f"), ("F8_E8M0", "ff"),
]
ABSURD = [
    ("F64", "0000000000000041"), ("F64", "ffffffffffffefff"), ("F32", "00000048"), ("F32", "000000c8"),
    ("F32", "ffff7f7f"), ("BF16", "0048"), ("BF16", "7fff"),
]
LARGEST = [
    ("F64", "ffffffffffffff40"), ("F32", "ffffff47"), ("F16", "ff7b"), ("BF16", "ffc7"), ("F8_E5M2", "fb"),
    ("F8_E4M3", "fe"), ("F8_E8M0", "fe"), ("I32", "ffffffff"),
]
# fmt: on
