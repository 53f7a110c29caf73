// Conversions: exhaustive from 16 and 8 bits, and to them the nearest value, ties to even.
#include "check.h"

namespace {

using namespace lora4j;

float f16_value(uint16_t h) {
  int exponent = (h >> 10) & 31;
  double mantissa = h & 0x3ff;
  double magnitude = exponent == 31  ? (mantissa == 0 ? INFINITY : NAN)
                     : exponent == 0 ? std::ldexp(mantissa, -24)
                                     : std::ldexp(1024 + mantissa, exponent - 25);
  return static_cast<float>(h & 0x8000 ? -magnitude : magnitude);
}

template <typename From, typename To>
void round_trip(const char* name, const From& from, const To& to, uint32_t quiet, uint32_t sign) {
  for (uint32_t h = 0; h < 2 * sign; h++) {
    float value = from(static_cast<uint16_t>(h));
    uint32_t back = to(value);
    CHECK(std::isnan(value) ? back == quiet : back == h, "%s %04x becomes %g becomes %04x", name, h, value, back);
  }
}

// Between neighbours: below, at and above the middle.
template <typename From, typename To>
void nearest(const char* name, const From& from, const To& to, uint32_t infinity, uint32_t sign) {
  for (uint32_t h = 0; h + 1 < infinity; h++) {
    double low = from(static_cast<uint16_t>(h));
    double high = from(static_cast<uint16_t>(h + 1));
    float middle = static_cast<float>((low + high) / 2);
    CHECK(middle == (low + high) / 2, "the middle is exact in float32");
    uint32_t even = h & 1 ? h + 1 : h;
    uint32_t below = to(std::nextafterf(middle, 0.0f));
    uint32_t above = to(std::nextafterf(middle, INFINITY));
    CHECK(to(middle) == even, "%s middle above %04x becomes %04x", name, h, to(middle));
    CHECK(to(-middle) == (even | sign), "%s negative middle above %04x", name, h);
    CHECK(below == h && above == h + 1, "%s around the middle above %04x: %04x %04x", name, h, below, above);
  }
}

}  // namespace

int main() {
  for (uint32_t h = 0; h < 0x10000; h++) {
    float got = f16_to_f32(static_cast<uint16_t>(h));
    float want = f16_value(static_cast<uint16_t>(h));
    CHECK(std::isnan(want) ? std::isnan(got) : bits_of(got) == bits_of(want), "f16 %04x: %g, expected %g", h, got, want);
  }
  round_trip("f16", f16_to_f32, f32_to_f16, 0x7e00, 0x8000);
  round_trip("bf16", bf16_to_f32, f32_to_bf16, 0x7fc0, 0x8000);
  nearest("f16", f16_to_f32, f32_to_f16, 0x7c00, 0x8000);
  nearest("bf16", bf16_to_f32, f32_to_bf16, 0x7f80, 0x8000);
  auto f8_value = [](uint16_t byte) { return f8_to_f32(static_cast<uint8_t>(byte)); };
  round_trip("f8", f8_value, f32_to_f8, 0x7f, 0x80);
  nearest("f8", f8_value, f32_to_f8, 0x7f, 0x80);
  CHECK(f8_value(0x7e) == 448.0f && f8_value(0x01) == 0x1p-9f && f8_value(0x88) == -0x1p-6f, "f8");
  CHECK(f32_to_f8(464.0f) == 0x7e && f32_to_f8(464.1f) == 0x7f && f32_to_f8(-INFINITY) == 0xff, "f8 overflow");
  CHECK(f32_to_f16(65520.0f) == 0x7c00 && f32_to_f16(-1e30f) == 0xfc00, "f16 overflow");
  CHECK(f32_to_bf16(3.4e38f) == 0x7f80, "bf16 overflow");
  return 0;
}
