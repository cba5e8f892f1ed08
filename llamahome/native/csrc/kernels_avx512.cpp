#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")
#define LLAMAHOME_ISA "avx512-vnni"
#define LLAMAHOME_ACCUMULATORS 24  // vectors of 16 that fit the registers

namespace llamahome {
namespace {

#include "vectors.inc"

inline vf load_half(const uint16_t* p) {
  return (vf)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void store_half(uint16_t* p, vf v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
}
inline vf load_int8(const int8_t* p) {
  return (vf)_mm512_cvtepi32_ps(
      _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
// acc[n] += sum over i < 4 of w[4 n + i] * a[i], w unsigned.
inline vi dot4(vi acc, const uint8_t* w, const int8_t* a) {
  int32_t four;
  __builtin_memcpy(&four, a, 4);
  return (vi)_mm512_dpbusd_epi32((__m512i)acc, _mm512_loadu_si512(w), _mm512_set1_epi32(four));
}

#include "kernels.inc"

}  // namespace

const Kernels* avx512_kernels() {
  const bool here = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vnni");
  return here ? &kTable : nullptr;
}

}  // namespace llamahome
#pragma GCC pop_options
#else
const llamahome::Kernels* llamahome::avx512_kernels() { return nullptr; }
#endif
