# find_package(saga) from an npm package: configure with -Dsaga_DIR=node_modules/saga-scheduler/cmake, link saga::saga. Builds
# the library from the shipped sources inside the caller's build.
if(NOT TARGET saga::saga)
  add_subdirectory("${CMAKE_CURRENT_LIST_DIR}/.." "${CMAKE_BINARY_DIR}/_deps/saga" EXCLUDE_FROM_ALL)
endif()
set(saga_FOUND TRUE)
