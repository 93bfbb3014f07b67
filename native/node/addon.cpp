// The Node-API addon: registers the functions of each area. See binding.hpp for the conventions and src/native.d.cts for what
// JavaScript sees.
#include "binding.hpp"

namespace {

Napi::Value status_text(const Napi::CallbackInfo& info) {
  return Napi::String::New(info.Env(), saga_status_text(static_cast<saga_status_t>(saga::node::u32(info, 0))));
}

// Does nothing: what one call across the border costs at least (bench/).
Napi::Value nothing(const Napi::CallbackInfo& info) { return info.Env().Undefined(); }

Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  exports.Set("abiVersion", Napi::Number::New(env, saga_abi_version()));
  exports.Set("version", Napi::String::New(env, saga_version()));
  exports.Set("statusText", Napi::Function::New<status_text>(env, "statusText"));
  exports.Set("nothing", Napi::Function::New<nothing>(env, "nothing"));
  saga::node::register_hash(env, exports);
  saga::node::register_engine(env, exports);
  saga::node::register_json(env, exports);
  saga::node::register_kv_events(env, exports);
  saga::node::register_lineage(env, exports);
  saga::node::register_pages(env, exports);
  saga::node::register_prompt(env, exports);
  saga::node::register_simulate(env, exports);
  return exports;
}

}  // namespace

NODE_API_MODULE(NODE_GYP_MODULE_NAME, initialize)
