// What ranks with other pieces of a model say of a bucket: the same where all is the same, and an error of the step
// where anything differs.
#include <cuda_runtime.h>

#include <bucket_moo/limits.hpp>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "checks.hpp"
#include "emulation.hpp"
#include "model_pieces.cuh"

namespace {

namespace cuda = bucket_moo::cuda;
using bucket_moo::StepError;
using bucket_moo::StepHeader;
using bucket_moo::StepRecord;

/// A step of one piece's ranks.
struct Step {
  explicit Step(int k) : record(static_cast<std::size_t>(k)), unit(record.size()), total(record.size()) {
    header.k = k;
    header.step = 7;
    for (int i = 0; i < k; ++i) {
      const auto at = static_cast<std::size_t>(i);
      std::strcpy(record[at].objective.text(), ("objective " + std::to_string(i)).c_str());
      unit[at] = 0.5 + i;
      total[at] = 1.0 + i;
    }
  }

  cuda::PieceSaid said(std::uint64_t bucket) {
    cuda::PieceSaid said;
    CHECK(cuda::launch_write_piece({&header, record.data(), unit.data(), total.data(), nullptr}, bucket, &said,
                                   nullptr) == cudaSuccess);
    return said;
  }

  StepHeader header;
  std::vector<StepRecord> record;
  std::vector<double> unit, total;
};

constexpr int kPieces = 3;

/// What each of three pieces finds, of which one is changed.
void compare(const std::string& what, const std::function<void(Step&)>& change, int changed, std::uint64_t bucket) {
  checks::context = what;
  std::vector<Step> steps(kPieces, Step(4));
  change(steps[static_cast<std::size_t>(changed)]);
  constexpr std::size_t kPitch = sizeof(cuda::PieceSaid) + 32;
  std::vector<std::byte> messages(kPieces * kPitch);
  for (std::size_t p = 0; p < kPieces; ++p) {
    const cuda::PieceSaid said = steps[p].said(static_cast<int>(p) == changed ? bucket : 5);
    std::memcpy(messages.data() + p * kPitch, &said, sizeof(said));
  }
  for (int own = 0; own < kPieces; ++own) {
    StepHeader first, table = steps[static_cast<std::size_t>(own)].header;
    StepHeader& header = steps[static_cast<std::size_t>(own)].header;
    const StepError before = header.error;
    cuda::StepNotice told;
    CHECK(cuda::launch_check_pieces(messages.data(), kPitch, kPieces, own, &header, &table, {&first, &told, 9},
                                    nullptr) == cudaSuccess);
    if (what == "nothing") {
      CHECK(header.error == StepError::none && table.error == StepError::none && header.k == 4 && table.k == 4);
      CHECK(told.header.error == StepError::none && told.begun == 0);
    } else if (before != StepError::none) {
      CHECK(header.error == before && told.header.error == before);
    } else {
      const int culprit = own == changed ? (changed == 0 ? 1 : 0) : changed;
      CHECK(header.error == StepError::other_piece && header.culprit == culprit && header.k == 0);
      CHECK(table.error == StepError::other_piece && table.culprit == culprit && table.k == 0);
      CHECK(told.header.error == StepError::other_piece && told.header.step == header.step && told.begun == 9);
    }
  }
}

}  // namespace

int main() {
  for (const bool reverse : {false, true}) {
    bucket_moo::emulation::set_reverse_order(reverse);
    for (int changed = 0; changed < kPieces; ++changed) {
      compare("nothing", [](Step&) {}, changed, 5);
      compare("bucket", [](Step&) {}, changed, 6);
      compare("step", [](Step& step) { ++step.header.step; }, changed, 5);
      compare("name", [](Step& step) { step.record[3].objective.text()[9] = 'x'; }, changed, 5);
      compare("order", [](Step& step) { std::swap(step.record[0], step.record[1]); }, changed, 5);
      compare("weight", [](Step& step) { step.total[2] *= 1.0 + 0x1p-52; }, changed, 5);
      compare("unit", [](Step& step) { step.unit[0] = 2.0; }, changed, 5);
      compare("fewer", [](Step& step) { step.header.k = 3; }, changed, 5);
      compare("error", [](Step& step) { step.header.error = StepError::other_call; }, changed, 5);
    }
  }
  CHECK(cuda::launch_check_pieces(nullptr, 0, 2, 2, nullptr, nullptr, {}, nullptr) == cudaErrorInvalidValue);
  return checks::finish();
}
