// KV events: CPU microseconds to decode and count one, in a stream of prompts that come and go.
//
//   kv_events_bench [--blocks N] [--block-tokens N] [--prompts N]   blocks of a prompt (64), tokens of a block (16), prompts (4,096)
//
// Each event is a batch of its own, as engines publish them, and stores a prompt of 64 blocks behind nothing: keys of 64 bits, tokens
// drawn from a vocabulary of 152,000. Once all prompts are known (262,144 blocks), the oldest goes with each new one, by 64
// removals of one hash in one batch. "sink" is a scheduler's index (Mirror); "check" is the check of the msgpack alone.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>
#include <vector>

#include "../core/base/random.hpp"
#include "../core/index/mirror.hpp"
#include "../core/vllm/kv_event_source.hpp"

namespace {

using saga::BlockHash;
using Bytes = std::vector<std::uint8_t>;

double cpu_microseconds() { return static_cast<double>(std::clock()) * 1e6 / CLOCKS_PER_SEC; }

void put(Bytes& out, std::uint8_t first, std::uint64_t value, int width) {
  out.push_back(first);
  for (int i = width - 1; i >= 0; --i) out.push_back(static_cast<std::uint8_t>(value >> (8 * i)));
}
void put_text(Bytes& out, const std::string& text) {
  out.push_back(static_cast<std::uint8_t>(0xA0 | text.size()));
  out.insert(out.end(), text.begin(), text.end());
}
void put_integer(Bytes& out, std::uint64_t value) {
  if (value < 0x80) {
    put(out, static_cast<std::uint8_t>(value), 0, 0);
  } else if (value < 0x100) {
    put(out, 0xCC, value, 1);
  } else if (value < 0x10000) {
    put(out, 0xCD, value, 2);
  } else {
    put(out, value < 0x100000000 ? 0xCE : 0xCF, value, value < 0x100000000 ? 4 : 8);
  }
}

// Keys of a prompt are mix64 of a number, so that the removal finds them again.
BlockHash key_of(std::uint64_t prompt, std::uint32_t block) { return saga::mix64(prompt << 20 | block); }

Bytes stored(std::uint64_t prompt, std::uint32_t blocks, std::uint32_t block_tokens) {
  saga::Random random(prompt);
  Bytes out = {0x93};
  put(out, 0xCB, 0x41DAC012E3ECDB30, 8);
  out.push_back(0x91);
  out.push_back(0x8B);
  put_text(out, "type"), put_text(out, "BlockStored");
  put_text(out, "block_hashes"), put(out, 0xDC, blocks, 2);
  for (std::uint32_t i = 0; i < blocks; ++i) put(out, 0xCF, key_of(prompt, i), 8);
  put_text(out, "parent_block_hash"), out.push_back(0xC0);
  put_text(out, "token_ids"), put(out, 0xDD, blocks * block_tokens, 4);
  for (std::uint32_t i = 0; i < blocks * block_tokens; ++i) put_integer(out, random.below(152'000));
  put_text(out, "block_size"), put_integer(out, block_tokens);
  put_text(out, "lora_id"), out.push_back(0xC0);
  put_text(out, "medium"), put_text(out, "GPU");
  put_text(out, "lora_name"), out.push_back(0xC0);
  put_text(out, "extra_keys"), put(out, 0xDC, blocks, 2);
  for (std::uint32_t i = 0; i < blocks; ++i) out.push_back(0xC0);
  put_text(out, "group_idx"), out.push_back(0);
  put_text(out, "kv_cache_spec_kind"), put_text(out, "full_attention");
  out.push_back(0);
  return out;
}

Bytes removed(std::uint64_t prompt, std::uint32_t blocks) {
  Bytes out = {0x93};
  put(out, 0xCB, 0x41DAC012E3ECDB30, 8);
  put(out, 0xDC, blocks, 2);
  for (std::uint32_t i = blocks; i-- != 0;) {
    out.push_back(0x84);
    put_text(out, "type"), put_text(out, "BlockRemoved");
    put_text(out, "block_hashes"), out.push_back(0x91), put(out, 0xCF, key_of(prompt, i), 8);
    put_text(out, "medium"), put_text(out, "GPU");
    put_text(out, "group_idx"), out.push_back(0);
  }
  out.push_back(0);
  return out;
}

class NoSink final : public saga::ResidencySink {
 public:
  saga::Status ready() override { return saga::Status::kOk; }
  saga::Status stored(saga::Tier, BlockHash, std::span<const BlockHash>) override { return saga::Status::kOk; }
  saga::Status removed(saga::Tier, std::span<const BlockHash>) override { return saga::Status::kOk; }
  saga::Status cleared() override { return saga::Status::kOk; }
  saga::Status window_blocks(std::uint32_t) override { return saga::Status::kOk; }
  saga::Status window_stored(std::span<const BlockHash>) override { return saga::Status::kOk; }
  saga::Status window_removed(std::span<const BlockHash>) override { return saga::Status::kOk; }
};

class MirrorSink final : public saga::ResidencySink {
 public:
  saga::Status ready() override { return saga::Status::kOk; }
  saga::Status stored(saga::Tier tier, BlockHash parent, std::span<const BlockHash> hashes) override {
    return mirror.store(0, tier, hashes, parent) ? saga::Status::kOk : saga::Status::kFull;
  }
  saga::Status removed(saga::Tier tier, std::span<const BlockHash> hashes) override {
    mirror.remove(0, tier, hashes);
    return saga::Status::kOk;
  }
  saga::Status cleared() override { return saga::Status::kOk; }
  saga::Status window_blocks(std::uint32_t) override { return saga::Status::kOk; }
  saga::Status window_stored(std::span<const BlockHash>) override { return saga::Status::kOk; }
  saga::Status window_removed(std::span<const BlockHash>) override { return saga::Status::kOk; }

  saga::Mirror mirror = make();

 private:
  static saga::Mirror make() {
    saga::PrefixIndexOptions options;
    options.max_workers = 64;
    options.max_blocks = 1u << 21;
    return saga::Mirror(options);
  }
};

void measure(const char* name, saga::KvNaming naming, std::uint32_t blocks, std::uint32_t block_tokens,
             std::uint64_t live, saga::ResidencySink& sink) {
  const std::uint64_t rounds = std::max<std::uint64_t>(live, 4096);  // measured
  saga::KvEventSource source(
      {.naming = naming, .block_tokens = block_tokens, .max_blocks = 2 * live * blocks, .max_batch_bytes = 1u << 26});
  const auto apply = [&](const Bytes& payload) {
    saga::KvReport report;
    if (source.apply(payload, sink, &report) != saga::Status::kOk || report.counts.unknown_removals != 0 ||
        report.counts.unusable_blocks != 0) {
      std::fprintf(stderr, "a batch was not applied as it should be\n");
      std::exit(1);
    }
  };
  for (std::uint64_t i = 0; i < live; ++i) apply(stored(i, blocks, block_tokens));
  double store_time = 0, remove_time = 0;
  constexpr std::uint64_t kBatch = 64;  // payloads made before the clock starts
  for (std::uint64_t done = 0; done < 2 * rounds; done += kBatch) {
    // The first half touches all memory and fills the source with names that can be forgotten.
    if (done == rounds) store_time = remove_time = 0;
    std::vector<Bytes> stores, removals;
    for (std::uint64_t i = done; i < done + kBatch; ++i) {
      stores.push_back(stored(live + i, blocks, block_tokens));
      removals.push_back(removed(i, blocks));
    }
    double before = cpu_microseconds();
    for (const Bytes& payload : stores) apply(payload);
    store_time += cpu_microseconds() - before;
    before = cpu_microseconds();
    for (const Bytes& payload : removals) apply(payload);
    remove_time += cpu_microseconds() - before;
  }
  if (!source.verify()) std::exit(1);
  std::printf("%-20s %8.2f us a stored event of %u blocks, %8.2f us a batch of as many removals; %.0f MB reserved\n",
              name, store_time / static_cast<double>(rounds), blocks, remove_time / static_cast<double>(rounds),
              static_cast<double>(source.memory_bytes()) / 1e6);
}

void measure_check(std::uint32_t blocks, std::uint32_t block_tokens) {
  constexpr std::uint32_t kPayloads = 256, kTimes = 32;
  std::vector<Bytes> payloads;
  for (std::uint32_t i = 0; i < kPayloads; ++i) payloads.push_back(stored(i, blocks, block_tokens));
  std::uint64_t good = 0;
  const double before = cpu_microseconds();
  for (std::uint32_t i = 0; i < kTimes; ++i) {
    for (const Bytes& payload : payloads) good += saga::msgpack_valid(payload);
  }
  const double time = cpu_microseconds() - before;
  std::printf("%-20s %8.2f us a stored event of %zu bytes\n", "check", time / static_cast<double>(good),
              payloads[0].size());
}

}  // namespace

int main(int count, char** arguments) {
  std::uint32_t blocks = 64, block_tokens = 16, prompts = 4096;
  for (int i = 1; i + 1 < count; i += 2) {
    const auto value = static_cast<std::uint32_t>(std::atoi(arguments[i + 1]));
    if (std::strcmp(arguments[i], "--blocks") == 0) blocks = value;
    if (std::strcmp(arguments[i], "--block-tokens") == 0) block_tokens = value;
    if (std::strcmp(arguments[i], "--prompts") == 0) prompts = value;
  }
  measure_check(blocks, block_tokens);
  NoSink none;
  measure("direct", saga::KvNaming::kDirect, blocks, block_tokens, prompts, none);
  measure("translate", saga::KvNaming::kTranslate, blocks, block_tokens, prompts, none);
  {
    MirrorSink mirror;
    measure("direct + sink", saga::KvNaming::kDirect, blocks, block_tokens, prompts, mirror);
  }
  MirrorSink mirror;
  measure("translate + sink", saga::KvNaming::kTranslate, blocks, block_tokens, prompts, mirror);
}
