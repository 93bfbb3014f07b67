# Builds the Node-API addon build/Release/saga.node with node-gyp. Files and flags come from native/sources.json, the list that
# CMakeLists.txt and `saga build` read too. Not part of the published package: its presence there would make npm compile.
{
  "variables": {
    "flags": ["<!@(node -p \"require('./native/sources.json').flags.join(' ')\")"],
    "static_runtime": "<!(node -p \"process.env.SAGA_STATIC_RUNTIME === '1' ? 1 : 0\")"
  },
  "targets": [{
    "target_name": "saga",
    "sources": [
      "<!@(node -p \"const s = require('./native/sources.json'); [...s.core, ...s.capi, ...s.node].join(' ')\")"
    ],
    "include_dirs": [
      "<!@(node -p \"require('node-addon-api').include_dir\")",
      "native/include"
    ],
    "defines": [
      "<!@(node -p \"require('./native/sources.json').addonDefines.join(' ')\")"
    ],
    "cflags_cc!": ["-std=gnu++17", "-std=gnu++20", "-std=gnu++2a"],
    "cflags_cc": ["<@(flags)"],
    "configurations": { "Release": { "cflags": ["-O3"], "defines": ["NDEBUG"] } },
    "xcode_settings": {
      "CLANG_CXX_LANGUAGE_STANDARD": "c++20",
      "GCC_ENABLE_CPP_EXCEPTIONS": "YES",
      "GCC_ENABLE_CPP_RTTI": "NO",
      "GCC_SYMBOLS_PRIVATE_EXTERN": "YES",
      "GCC_OPTIMIZATION_LEVEL": "3",
      "MACOSX_DEPLOYMENT_TARGET": "12.0"
    },
    "conditions": [
      # Released binaries carry the C++ runtime, so that an older libstdc++ on the user's machine does not matter.
      ["OS=='linux' and static_runtime==1", {
        "ldflags": ["-static-libstdc++", "-static-libgcc", "-Wl,--exclude-libs,ALL"]
      }]
    ]
  }]
}
