// Memory(bytes): a writable buffer of large memory, uninitialised, which goes to the next Memory of about its size.
#pragma once
#include <Python.h>

namespace vismoe {

PyObject* memory_type();  // a new reference, or null with Python's error set

}  // namespace vismoe
