// What a saga_page_table_t is: shared by the functions on page tables and those on batch formers, which work on one.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "../core/pages/page_table.hpp"
#include "saga/saga.h"

struct saga_page_table_t {
  explicit saga_page_table_t(const saga::PageTableOptions& options)
      : table(options), copies(options.max_blocks_per_sequence) {
    hashes.reserve(options.max_blocks_per_sequence);
    shared.reserve(options.max_blocks_per_sequence);
  }
  saga::PageTable table;
  // A batch former owns the sequences: what opens or changes one is refused to everybody else.
  bool attached = false;
  // The caller's handle and the batch former's: the last that is destroyed frees the table.
  std::uint32_t holders = 1;
  // Working memory of the functions that change the table, so that they allocate nothing.
  std::vector<saga::BlockCopy> copies;
  std::vector<saga::BlockHash> hashes;
  std::vector<std::pair<std::uint64_t, saga::BlockHash>> shared;
};

namespace saga::capi {

inline void let_go(saga_page_table_t* table) {
  if (table != nullptr && --table->holders == 0) delete table;
}

}  // namespace saga::capi
