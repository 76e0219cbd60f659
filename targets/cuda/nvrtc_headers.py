"""The few standard headers that generated source names, for NVRTC, which has none.

The ones of CCCL would do, but take NVRTC a second to read.
"""

from __future__ import annotations

VERSION = "headers 1"  # a part of what identifies the compiler

_INTEGERS = b"""#pragma once
namespace cuda { namespace std {
typedef signed char int8_t; typedef short int16_t; typedef int int32_t; typedef long long int64_t;
typedef unsigned char uint8_t; typedef unsigned short uint16_t; typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
} }
"""

_TRAITS = b"""#pragma once
namespace cuda { namespace std {
template <class T, T v> struct integral_constant { static constexpr T value = v; };
typedef integral_constant<bool, true> true_type;
typedef integral_constant<bool, false> false_type;
template <class A, class B> struct is_same : false_type {};
template <class A> struct is_same<A, A> : true_type {};
template <class A, class B> constexpr bool is_same_v = is_same<A, B>::value;
template <class A> struct is_floating_point : false_type {};
template <> struct is_floating_point<float> : true_type {};
template <> struct is_floating_point<double> : true_type {};
template <class A> struct is_integral : false_type {};
template <> struct is_integral<bool> : true_type {};
template <> struct is_integral<char> : true_type {};
template <> struct is_integral<signed char> : true_type {};
template <> struct is_integral<unsigned char> : true_type {};
template <> struct is_integral<short> : true_type {};
template <> struct is_integral<unsigned short> : true_type {};
template <> struct is_integral<int> : true_type {};
template <> struct is_integral<unsigned int> : true_type {};
template <> struct is_integral<long> : true_type {};
template <> struct is_integral<unsigned long> : true_type {};
template <> struct is_integral<long long> : true_type {};
template <> struct is_integral<unsigned long long> : true_type {};
template <class A, bool = is_integral<A>::value> struct is_unsigned : false_type {};
template <class A> struct is_unsigned<A, true> : integral_constant<bool, (A(-1) > A(0))> {};
template <class A, bool = is_integral<A>::value || is_floating_point<A>::value>
struct is_signed : false_type {};
template <class A> struct is_signed<A, true> : integral_constant<bool, (A(-1) < A(0))> {};
template <bool, class T = void> struct enable_if {};
template <class T> struct enable_if<true, T> { typedef T type; };
template <bool, class A, class B> struct conditional { typedef A type; };
template <class A, class B> struct conditional<false, A, B> { typedef B type; };
} }
"""

_DRIVER = b"""#pragma once
typedef struct alignas(64) CUtensorMap_st { unsigned long long opaque[16]; } CUtensorMap;
"""

HEADERS = {
    b"cuda/std/cstdint": _INTEGERS,
    b"cuda/std/type_traits": _TRAITS,
    b"cuda.h": _DRIVER,
}


def with_headers(source: str) -> str:
    """A source that names tensor maps gets the header that declares them."""
    return f"#include <cuda.h>\n{source}" if "CUtensorMap" in source else source
