"""Writes hash_vectors.hpp: expectations of hash_test.cpp, made without any of SAGA's own code.

    pip install xxhash cbor2
    python make_hash_vectors.py > hash_vectors.hpp

The block hashes follow vLLM's definition (canonical CBOR of a 3-tuple), written down here with the packages cbor2 and
xxhash and with hashlib.
"""

import hashlib

import cbor2
import xxhash


def message(size):
    return bytes((i * 2654435761 >> 13) & 0xFF for i in range(size))


def xxh3_vectors():
    lengths = [0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 31, 32, 33, 63, 64, 65, 80, 95, 96, 97, 127, 128, 129, 159, 160,
               161, 191, 192, 193, 200, 239, 240, 241, 255, 256, 257, 272, 320, 321, 512, 513, 1023, 1024, 1025, 1088, 1089,
               2047, 2048, 2049, 4096, 5000]
    for seed in (0, 0x9E3779B97F4A7C15):
        for length in lengths:
            yield length, seed, xxhash.xxh3_128_hexdigest(message(length), seed=seed)


def image(part, offset):
    return (part, offset)


EMBEDDING = hashlib.sha256(b"prompt embedding").digest()
LONG_TEXT = "a-name-of-more-than-twenty-three-bytes/" * 8

# block size, tokens, extra keys by block: what vLLM would put into the tuple.
CASES = [
    (4, list(range(10, 22)), [None, None, None]),
    (4, [0, 23, 24, 255, 256, 65535, 65536, 151936], [None, None]),
    (16, list(range(16)), [("salt-1",)]),
    (16, list(range(32)), [None, None]),
    (4, [1, 2, 3, 4, 5, 6, 7, 8], [("lora-a", "salt-1"), ("lora-a",)]),
    (4, [1, 2, 3, 4], [(image("mmhash", -3),)]),
    (4, [1, 2, 3, 4], [("lora-a", image("mmhash", 2), "salt-1")]),
    (4, [10, 11, 12, 13], [("tenant-a",)]),
    (1, [4294967295, 2147483648, 0], [None, None, None]),
    (23, [7 * i for i in range(46)], [None, None]),
    (24, [70000 + i for i in range(24)], [None]),
    (255, [(i * 2654435761) % 152000 for i in range(255)], [None]),
    (256, [(i * 2654435761) % 152000 for i in range(512)], [None, None]),
    (4, [1, 2, 3, 4, 5, 6, 7, 8], [(image("i" * 64, -24), image("j", -1), image("k", 3)), (image("i" * 64, -25),)]),
    (4, [1, 2, 3, 4], [(image("x", -300), image("y", 0), image("z", 65536))]),
    (4, [1, 2, 3, 4], [(image("x", -(2**33)), image("y", 2**40))]),
    (4, [1, 2, 3, 4], [("l", EMBEDDING)]),
    (4, [1, 2, 3, 4, 5, 6, 7, 8], [(LONG_TEXT, image("mm", 1), "gr\u00fc\u00dfe", EMBEDDING), (LONG_TEXT, image("mm", -3), EMBEDDING)]),
]


def digest_of(algorithm, data):
    return hashlib.sha256(data).digest() if algorithm == "sha256_cbor" else xxhash.xxh3_128_digest(data)


def block_cases(algorithm):
    for seed in ("0", "42"):
        none_hash = digest_of(algorithm, cbor2.dumps(seed, canonical=True))
        for size, tokens, extra in CASES:
            parent, hashes = none_hash, []
            for i, keys in enumerate(extra):
                block = (parent, tuple(tokens[i * size:(i + 1) * size]), keys)
                parent = digest_of(algorithm, cbor2.dumps(block, canonical=True))
                hashes.append(parent)
            yield seed, none_hash, size, tokens, extra, hashes


def text(value):
    # One literal per run of plain characters: a hexadecimal escape swallows digits that follow it.
    out, plain = [], ""
    for byte in value.encode():
        if 32 <= byte < 127 and chr(byte) not in '"\\':
            plain += chr(byte)
        else:
            if plain:
                out.append(f'"{plain}"')
                plain = ""
            out.append(f'"\\x{byte:02x}"')
    if plain or not out:
        out.append(f'"{plain}"')
    return " ".join(out)


def extra_key(algorithm_keys, index):
    value = algorithm_keys[index]
    if isinstance(value, tuple):
        return f"{{kMultimodal, {text(value[0])}, {value[1]}}}"
    if isinstance(value, bytes):
        return f"{{kPromptEmbedding, \"{value.hex()}\", 0}}"
    is_lora = index == 0 and value.startswith(("l", LONG_TEXT[:3]))
    return f"{{{'kLoraName' if is_lora else 'kCacheSalt'}, {text(value)}, 0}}"


def main():
    print("// Written by make_hash_vectors.py; not to be edited.")
    print("#pragma once\n\n#include <cstddef>\n#include <cstdint>\n#include <string>\n#include <vector>\n")
    print("namespace saga::hash_vectors {\n")
    print("// XXH3-128, canonical hexadecimal, of the first `size` bytes of the sequence (i * 2654435761 >> 13) mod 256.")
    print("struct Xxh3Vector {\n  std::size_t size;\n  std::uint64_t seed;\n  const char* digest;\n};\n")
    print("inline const Xxh3Vector kXxh3[] = {")
    for length, seed, digest in xxh3_vectors():
        print(f'    {{{length}, 0x{seed:x}u, "{digest}"}},')
    print("};\n")
    print("// Chains of vLLM block hashes: block i has the tokens [i * block_size, (i + 1) * block_size) and extra_keys[i].")
    print("enum Kind { kLoraName, kMultimodal, kCacheSalt, kPromptEmbedding };")
    print("struct Key {\n  Kind kind;\n  std::string data;  // hexadecimal for kPromptEmbedding\n  std::int64_t offset;\n};")
    print("struct Chain {\n  const char* algorithm;\n  const char* seed;\n  const char* none_hash;\n  std::uint32_t block_size;\n"
          "  std::vector<std::uint32_t> tokens;\n  std::vector<std::vector<Key>> extra_keys;\n"
          "  std::vector<const char*> hashes;\n  std::vector<std::uint64_t> keys;\n};\n")
    print("inline const std::vector<Chain>& chains() {\n  static const std::vector<Chain> all = {")
    for algorithm in ("sha256_cbor", "xxhash_cbor"):
        for seed, none_hash, size, tokens, extra, hashes in block_cases(algorithm):
            lists = ", ".join("{" + ", ".join(extra_key(keys, i) for i in range(len(keys))) + "}" if keys else "{}"
                              for keys in extra)
            print(f'      {{"{algorithm}", "{seed}", "{none_hash.hex()}", {size},')
            print(f"       {{{', '.join(f'{t}u' for t in tokens)}}},")
            print(f"       {{{lists}}},")
            print("       {" + ", ".join(f'"{h.hex()}"' for h in hashes) + "},")
            print("       {" + ", ".join(f"{int.from_bytes(h[-8:], 'big')}u" for h in hashes) + "}},")
    print("  };\n  return all;\n}\n")
    print("}  // namespace saga::hash_vectors")


if __name__ == "__main__":
    main()
