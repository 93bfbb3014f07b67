# What node-gyp needs from a Node installation besides the headers. scripts/native.mjs puts it beside the headers of the
# package node-api-headers where the running Node has none of its own.
{
  "target_defaults": {
    "default_configuration": "Release",
    "configurations": {
      "Release": { "cflags": ["-O3"], "defines": ["NDEBUG"] },
      "Debug": { "cflags": ["-g", "-O0"] }
    },
    "conditions": [
      ["OS=='linux' or OS=='mac'", { "cflags": ["-fPIC", "-pthread"], "ldflags": ["-pthread"] }],
      ["OS=='mac'", {
        "xcode_settings": {
          "GCC_OPTIMIZATION_LEVEL": "3",
          "OTHER_LDFLAGS": ["-Wl,-undefined,dynamic_lookup"]
        }
      }]
    ]
  }
}
