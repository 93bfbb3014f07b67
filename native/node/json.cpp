// Outlines of JSON bodies for JavaScript: functions without an object. Everything larger than a number goes through the arrays of
// the call, whose layout is that of the structs in json.h.
#include "binding.hpp"

namespace saga::node {
namespace {

constexpr std::size_t kMemberWords = sizeof(saga_json_member_t) / sizeof(std::uint32_t);
constexpr std::size_t kElementWords = sizeof(saga_json_element_t) / sizeof(std::uint32_t);
static_assert(kMemberWords == 8 && kElementWords == 3);
static_assert(sizeof(saga_json_outline_t) == 7 * sizeof(std::uint32_t));
static_assert(sizeof(saga_json_token_ids_t) == 3 * sizeof(std::uint32_t));

// jsonScan(body, names, nameEnds, header, members, elements, ids) -> the number of ids
Napi::Value scan(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const auto body = elements<std::uint8_t>(env, info[0]);
  const auto names = elements<char>(env, info[1]);
  const auto name_ends = elements<std::uint32_t>(env, info[2]);
  const auto header = elements<std::uint32_t>(env, info[3]);
  const auto members = elements<std::uint32_t>(env, info[4]);
  const auto listed = elements<std::uint32_t>(env, info[5]);
  const auto ids = elements<std::uint32_t>(env, info[6]);
  const std::size_t last = name_ends.count == 0 ? 0 : name_ends.data[name_ends.count - 1];
  if (header.count != 7 || last != names.count) return failure(info, SAGA_ERR_INVALID_ARGUMENT);
  std::size_t id_count = 0;
  const saga_status_t status =
      saga_json_scan_ids(body.data, body.count, names.data, name_ends.data, name_ends.count,
                         reinterpret_cast<saga_json_member_t*>(members.data), members.count / kMemberWords,
                         reinterpret_cast<saga_json_element_t*>(listed.data), listed.count / kElementWords, ids.data,
                         ids.count, &id_count, reinterpret_cast<saga_json_outline_t*>(header.data));
  return answer(info, status, static_cast<double>(id_count));
}

// jsonTokenIds(body, start, end, ids, result)
Napi::Value token_ids(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const auto body = elements<std::uint8_t>(env, info[0]);
  const auto ids = elements<std::uint32_t>(env, info[3]);
  const auto out = elements<std::uint32_t>(env, info[4]);
  if (out.count != 3) return failure(info, SAGA_ERR_INVALID_ARGUMENT);
  const saga_status_t status = saga_json_token_ids(body.data, body.count, u64(info, 1), u64(info, 2), ids.data,
                                                   ids.count, reinterpret_cast<saga_json_token_ids_t*>(out.data));
  return answer(info, status);
}

Napi::Value error_text(const Napi::CallbackInfo& info) {
  return Napi::String::New(info.Env(), saga_json_error_text(static_cast<saga_json_error_t>(u32(info, 0))));
}

Napi::Value prefix(const Napi::CallbackInfo& info) {
  const auto a = elements<std::uint8_t>(info.Env(), info[0]);
  const auto b = elements<std::uint8_t>(info.Env(), info[1]);
  std::size_t count = 0;
  const saga_status_t status = saga_common_prefix(a.data, a.count, b.data, b.count, &count);
  return answer(info, status, static_cast<double>(count));
}

Napi::Value hash_bytes(const Napi::CallbackInfo& info) {
  const auto bytes = elements<std::uint8_t>(info.Env(), info[0]);
  std::uint64_t hash = 0;
  const saga_status_t status = saga_hash_bytes(bytes.data, bytes.count, &hash);
  return status == SAGA_OK ? Napi::BigInt::New(info.Env(), hash) : failure(info, status);
}

}  // namespace

void register_json(Napi::Env env, Napi::Object exports) {
  exports.Set("jsonScan", Napi::Function::New<scan>(env, "jsonScan"));
  exports.Set("jsonTokenIds", Napi::Function::New<token_ids>(env, "jsonTokenIds"));
  exports.Set("jsonErrorText", Napi::Function::New<error_text>(env, "jsonErrorText"));
  exports.Set("commonPrefix", Napi::Function::New<prefix>(env, "commonPrefix"));
  exports.Set("hashBytes", Napi::Function::New<hash_bytes>(env, "hashBytes"));
}

}  // namespace saga::node
