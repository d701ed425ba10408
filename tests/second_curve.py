"""secp256k1 in plain Python, slow, not in constant time: for proofs only. A point is (x, y), or None.

Sources: SEC 1 (ECDSA, compressed points), SEC 2 (the curve), RFC 6979 (the nonce), X.690 (DER).
"""

from __future__ import annotations

import hmac

P = 2**256 - 2**32 - 977
N = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
G = (
    0x79BE667EF9DCBBAC55A06295CE870B07029BFCDB2DCE28D959F2815B16F81798,
    0x483ADA7726A3C4655DA4FBFC0E1108A8FD17B448A68554199C47D08FFB10D4B8,
)

Point = tuple[int, int] | None


def add(one: Point, other: Point) -> Point:
    if one is None or other is None:
        return one or other
    (x1, y1), (x2, y2) = one, other
    if x1 == x2 and (y1 + y2) % P == 0:
        return None
    if one == other:
        slope = 3 * x1 * x1 * pow(2 * y1, -1, P)
    else:
        slope = (y2 - y1) * pow(x2 - x1, -1, P)
    x3 = (slope * slope - x1 - x2) % P
    return x3, (slope * (x1 - x3) - y1) % P


def times(number: int, point: Point) -> Point:
    total = None
    while number:
        if number & 1:
            total = add(total, point)
        point, number = add(point, point), number >> 1
    return total


def compressed(secret: int) -> bytes:
    point = times(secret, G)
    assert point is not None
    return bytes([2 + point[1] % 2]) + point[0].to_bytes(32, "big")


def point_of(key: bytes) -> Point:
    """None unless these are 33 bytes of a point."""
    if len(key) != 33 or key[0] not in (2, 3):
        return None
    x = int.from_bytes(key[1:], "big")
    y = pow(x**3 + 7, (P + 1) // 4, P)
    if x >= P or (y * y - x**3 - 7) % P:
        return None
    return x, y if y % 2 == key[0] % 2 else P - y


def sign(secret: int, digest: bytes) -> bytes:
    """r and s, s low; 64 bytes."""
    seed = secret.to_bytes(32, "big") + (int.from_bytes(digest, "big") % N).to_bytes(32, "big")
    key, value = bytes(32), b"\x01" * 32
    for step in (b"\0", b"\x01"):
        key = hmac.digest(key, value + step + seed, "sha256")
        value = hmac.digest(key, value, "sha256")
    # That a nonce must be drawn again happens once in 2^127.
    value = hmac.digest(key, value, "sha256")
    nonce = int.from_bytes(value, "big")
    point = times(nonce, G)
    assert point is not None
    r = point[0] % N
    s = (int.from_bytes(digest, "big") + r * secret) * pow(nonce, -1, N) % N
    return r.to_bytes(32, "big") + min(s, N - s).to_bytes(32, "big")


def verifies(key: Point, digest: bytes, signature: bytes) -> bool:
    if len(signature) != 64:
        return False
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    if not (0 < r < N and 0 < s <= N // 2):
        return False
    inverse = pow(s, -1, N)
    point = add(times(int.from_bytes(digest, "big") * inverse % N, G), times(r * inverse % N, key))
    return point is not None and point[0] % N == r


def der(signature: bytes) -> bytes:
    numbers = b""
    for half in (signature[:32], signature[32:]):
        octets = half.lstrip(b"\0")
        octets = (b"\0" if octets[0] >= 0x80 else b"") + octets
        numbers += b"\x02" + bytes([len(octets)]) + octets
    return b"\x30" + bytes([len(numbers)]) + numbers
