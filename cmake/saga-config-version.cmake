# The version is the npm package's. As in an installed copy, only the same minor version is compatible.
file(READ "${CMAKE_CURRENT_LIST_DIR}/../package.json" _saga_package)
string(JSON PACKAGE_VERSION GET "${_saga_package}" version)
string(REGEX MATCH "^[0-9]+\\.[0-9]+" _saga_minor "${PACKAGE_VERSION}")
string(REGEX MATCH "^[0-9]+\\.[0-9]+" _saga_wanted "${PACKAGE_FIND_VERSION}")
if(PACKAGE_FIND_VERSION VERSION_LESS_EQUAL PACKAGE_VERSION
    AND (NOT PACKAGE_FIND_VERSION OR NOT _saga_wanted OR _saga_wanted STREQUAL _saga_minor))
  set(PACKAGE_VERSION_COMPATIBLE TRUE)
  if(PACKAGE_FIND_VERSION VERSION_EQUAL PACKAGE_VERSION)
    set(PACKAGE_VERSION_EXACT TRUE)
  endif()
else()
  set(PACKAGE_VERSION_COMPATIBLE FALSE)
endif()
