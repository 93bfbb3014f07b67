// Block hashing for JavaScript: createHasher(algorithm, blockTokens, root) -> functions of one hasher. Hashes are
// written to the BigUint64Array given with each call.
#include <string>

#include "binding.hpp"

namespace saga::node {
namespace {

struct Hasher {
  saga_hasher_t* handle = nullptr;
  ~Hasher() { saga_hasher_destroy(handle); }
};
using BoundHasher = Bound<Hasher>;

Napi::Value reset(const Napi::CallbackInfo& info) {
  return answer(info, saga_hasher_reset(BoundHasher::of(info).handle));
}

// setKeys(loraName, cacheSalt)
Napi::Value set_keys(const Napi::CallbackInfo& info) {
  const std::string lora = info[0].As<Napi::String>().Utf8Value();
  const std::string salt = info[1].As<Napi::String>().Utf8Value();
  return answer(info,
                saga_hasher_set_keys(BoundHasher::of(info).handle, lora.data(), lora.size(), salt.data(), salt.size()));
}

// update(tokens: Uint32Array, hashes: BigUint64Array) -> number of blocks
Napi::Value update(const Napi::CallbackInfo& info) {
  const auto tokens = elements<std::uint32_t>(info.Env(), info[0]);
  const auto hashes = elements<std::uint64_t>(info.Env(), info[1]);
  std::size_t count = 0;
  const saga_status_t status =
      saga_hasher_update(BoundHasher::of(info).handle, tokens.data, tokens.count, hashes.data, hashes.count, &count);
  return answer(info, status, static_cast<double>(count));
}

// digest(out: Uint8Array of 32) -> size
Napi::Value digest(const Napi::CallbackInfo& info) {
  std::size_t size = 0;
  const auto out = elements<std::uint8_t>(info.Env(), info[0]);
  const saga_status_t status = saga_hasher_digest(BoundHasher::of(info).handle, out.data, &size);
  return answer(info, status, static_cast<double>(size));
}

Napi::Value create(const Napi::CallbackInfo& info) {
  const std::string root = info[2].As<Napi::String>().Utf8Value();
  saga_hasher_t* handle = nullptr;
  const saga_status_t status = saga_hasher_create(static_cast<saga_hash_algorithm_t>(u32(info, 0)), u32(info, 1),
                                                  root.data(), root.size(), &handle);
  if (status != SAGA_OK) return failure(info, status);
  auto* bound = new BoundHasher();
  bound->object.handle = handle;
  Napi::Object methods = Napi::Object::New(info.Env());
  bound->bind<reset>(info.Env(), methods, "reset");
  bound->bind<set_keys>(info.Env(), methods, "setKeys");
  bound->bind<update>(info.Env(), methods, "update");
  bound->bind<digest>(info.Env(), methods, "digest");
  return bound->bound_to(info.Env(), methods);
}

}  // namespace

void register_hash(Napi::Env env, Napi::Object exports) {
  exports.Set("createHasher", Napi::Function::New<create>(env, "createHasher"));
}

}  // namespace saga::node
