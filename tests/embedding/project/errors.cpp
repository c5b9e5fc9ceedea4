// Errors between libraries, and the C interface beside the C++ one.
#include <bucket_moo.h>

#include <array>
#include <collective/agreed_error.hpp>
#include <cstdio>
#include <methods/method_config.hpp>
#include <stdexcept>

extern "C" double first_weight(const char* method, const float* a, const float* b, int n);
extern "C" void disagree();

int main() {
  const std::array<float, 2> a{1.0F, 0.0F};
  const std::array<float, 2> b{-1.0F, 2.0F};
  std::printf("%.4f\n", first_weight("mgda", a.data(), b.data(), 2));
  try {
    first_weight("nothing", a.data(), b.data(), 2);
  } catch (const std::invalid_argument& error) {
    std::printf("%s\n", error.what());
  }
  try {
    disagree();
  } catch (const bucket_moo::AgreedError& error) {
    std::printf("%s\n", error.what());
  }
  std::printf("%d %s\n", bucket_moo_abi_version(), bucket_moo_version());
}
