// ResidencySink: where a KvEventSource says which blocks have come and gone.
//
// What arrives here are transitions, not copies: a block is stored once and later removed once, per tier. (Where the
// publisher has two keys for what is one block to the scheduler, both do so: a sink should count.) Blocks are named by the
// scheduler's keys. Two kinds of KV-cache groups are told apart, because a prefix is usable by different rules: groups
// that keep every block must hold all of it, groups that keep a window only the last blocks before its end.
// stored/removed is about blocks that *all* groups of the first kind hold; window_stored/window_removed about blocks that
// all groups of the second kind hold in GPU memory, and window_blocks says how many of them must lie before the end (the
// longest window of any group).
//
// Contract: calls come in the order of events. A call that returns anything but kOk must have changed nothing; the source then
// remembers what was not told. ready() is asked before a batch: with anything but kOk the batch is refused as a whole.
#pragma once

#include <cstdint>
#include <span>

#include "../base/status.hpp"
#include "../base/types.hpp"

namespace saga {

class ResidencySink {
 public:
  virtual Status ready() = 0;

  // `parent`: key of the block before the first one, 0 where there is none or it is not known. A hint.
  virtual Status stored(Tier tier, BlockHash parent, std::span<const BlockHash> hashes) = 0;
  virtual Status removed(Tier tier, std::span<const BlockHash> hashes) = 0;
  // Everything is gone, in every tier and of every group.
  virtual Status cleared() = 0;

  virtual Status window_blocks(std::uint32_t blocks) = 0;  // 0: no group keeps a window
  virtual Status window_stored(std::span<const BlockHash> hashes) = 0;
  virtual Status window_removed(std::span<const BlockHash> hashes) = 0;

 protected:
  ~ResidencySink() = default;
};

}  // namespace saga
