// What the files of the Node binding share.
//
// The binding stands on the C interface alone. It is called by one TypeScript file per area, which has checked the arguments;
// here they are only unpacked. Numbers go in and at most one number comes out; everything larger goes through typed arrays,
// either passed with the call (about 40 ns) or registered once at creation (nothing a call).
//
// A function returns its result (>= 0), or minus the saga_status_t where the C interface refused. Functions of an object are
// bound by their data pointer (an `ObjectWrap` method costs three times as much); each of them keeps the object alive.
#pragma once

#include <napi.h>

#include <cstddef>
#include <cstdint>
#include <utility>

#include "saga/saga.h"

namespace saga::node {

// A typed array passed with a call. The façade passes the right element type.
template <typename T>
struct Elements {
  T* data = nullptr;
  std::size_t count = 0;
};

template <typename T>
Elements<T> elements(napi_env env, napi_value value) {
  napi_typedarray_type type;
  void* data = nullptr;
  std::size_t count = 0;
  if (napi_get_typedarray_info(env, value, &type, &count, &data, nullptr, nullptr) != napi_ok) return {};
  return {static_cast<T*>(data), count};
}

inline double number(const Napi::CallbackInfo& info, std::size_t i) {
  double value = 0;
  napi_get_value_double(info.Env(), info[i], &value);
  return value;
}

// The façade passes integers in range, so the conversions are exact.
inline std::uint64_t u64(const Napi::CallbackInfo& info, std::size_t i) {
  return static_cast<std::uint64_t>(number(info, i));
}
inline std::uint32_t u32(const Napi::CallbackInfo& info, std::size_t i) {
  return static_cast<std::uint32_t>(number(info, i));
}
// A time or the number of a thread; negative: not told.
inline std::uint64_t u64_or_max(const Napi::CallbackInfo& info, std::size_t i) {
  const double value = number(info, i);
  return value < 0 ? UINT64_MAX : static_cast<std::uint64_t>(value);
}

inline Napi::Value result(const Napi::CallbackInfo& info, double value) { return Napi::Number::New(info.Env(), value); }
inline Napi::Value failure(const Napi::CallbackInfo& info, saga_status_t status) {
  return Napi::Number::New(info.Env(), -static_cast<double>(status));
}
// `value` if the status is SAGA_OK.
inline Napi::Value answer(const Napi::CallbackInfo& info, saga_status_t status, double value = 0) {
  return status == SAGA_OK ? result(info, value) : failure(info, status);
}

// A native object whose functions JavaScript holds: made with `new`, each function bound, then `bound_to`. It lives until the
// last of them is collected. V8 is told how much memory
// that will free, or it would see no reason to collect.
template <typename T>
class Bound {
 public:
  template <typename... Args>
  explicit Bound(Args&&... args) : object(std::forward<Args>(args)...) {}

  T object;

  // `bytes` of native memory hang on the object, in place of what was said before.
  void set_native_bytes(Napi::Env env, std::int64_t bytes) {
    Napi::MemoryManagement::AdjustExternalMemory(env, bytes - native_bytes_);
    native_bytes_ = bytes;
  }

  static Bound& bound_of(const Napi::CallbackInfo& info) { return *static_cast<Bound*>(info.Data()); }
  static T& of(const Napi::CallbackInfo& info) { return bound_of(info).object; }

  // Where the thread is being ended (`worker.terminate()`), Node makes no function: nobody will ask for it.
  template <Napi::Value (*Function)(const Napi::CallbackInfo&)>
  void bind(napi_env env, napi_value methods, const char* name) {
    napi_value function = nullptr;
    if (napi_create_function(env, name, NAPI_AUTO_LENGTH, &call<Function>, this, &function) != napi_ok) return;
    if (napi_add_finalizer(env, function, this, &finalize, nullptr, nullptr) != napi_ok) return;
    ++references_;
    napi_set_named_property(env, methods, name, function);
  }

  // The last step of making it: from here on its functions alone keep it alive.
  Napi::Object bound_to(Napi::Env env, Napi::Object methods) {
    release(env);
    return methods;
  }

 private:
  template <Napi::Value (*Function)(const Napi::CallbackInfo&)>
  static napi_value call(napi_env env, napi_callback_info arguments) {
    const Napi::CallbackInfo info(env, arguments);
    return Function(info);
  }
  static void finalize(napi_env env, void* bound, void*) { static_cast<Bound*>(bound)->release(env); }
  void release(Napi::Env env) {
    if (--references_ != 0) return;
    set_native_bytes(env, 0);
    delete this;
  }
  std::uint32_t references_ = 1;  // who makes it, and its functions
  std::int64_t native_bytes_ = 0;
};

// Functions of a batch former on the table; the arguments are those of createBatchFormer (batch.cpp).
Napi::Value create_batch_former(const Napi::CallbackInfo& info, saga_page_table_t* table);

// Functions of a KV event source that tells the engine; the arguments are those of createKvSource (kv_events.cpp). The engine is
// asked for at each call: NULL once it is destroyed.
Napi::Value create_kv_source(const Napi::CallbackInfo& info, saga_engine_t* const* engine);

void register_hash(Napi::Env env, Napi::Object exports);
void register_engine(Napi::Env env, Napi::Object exports);
void register_json(Napi::Env env, Napi::Object exports);
void register_kv_events(Napi::Env env, Napi::Object exports);
void register_lineage(Napi::Env env, Napi::Object exports);
void register_pages(Napi::Env env, Napi::Object exports);
void register_prompt(Napi::Env env, Napi::Object exports);
void register_simulate(Napi::Env env, Napi::Object exports);

}  // namespace saga::node
