/* The extension: a table of calls and the types. */
#define _GNU_SOURCE
#include "channel.h"
#include "guard.h"
#include "heap_container.h"
#include "heap_record.h"
#include "ring.h"

static int add_type(PyObject *module, const char *name, PyType_Spec *spec, PyTypeObject *base, PyTypeObject **keep)
{
    guard_type(spec);
    PyObject *type = PyType_FromModuleAndSpec(module, spec, (PyObject *)base);
    if (type == NULL)
        return -1;
    if (keep != NULL)
        *keep = (PyTypeObject *)Py_NewRef(type);
    int result = PyModule_AddObjectRef(module, name, type);
    Py_DECREF(type);
    return result;
}

static int exec_core(PyObject *module)
{
    if (region_type != NULL) {
        PyErr_SetString(PyExc_ImportError, "mirrormap can be loaded once a process: "
                                           "it supports no sub-interpreters");
        return -1;
    }
    closed_error = Py_NewRef(PyExc_ValueError);
    if (add_type(module, "Region", &region_spec, NULL, &region_type) < 0
        || add_type(module, "Span", &span_spec, NULL, &span_type) < 0
        || add_type(module, "Exporter", &exporter_spec, NULL, NULL) < 0
        || add_type(module, "Places", &places_spec, NULL, &places_type) < 0
        || add_type(module, "RingBase", &ring_spec, places_type, NULL) < 0 || places_setup() < 0 || ring_setup() < 0)
        return -1;
    if (add_type(module, "End", &end_spec, places_type, &end_type) < 0
        || add_type(module, "SenderBase", &sender_spec, end_type, NULL) < 0
        || add_type(module, "ReceiverBase", &receiver_spec, end_type, NULL) < 0
        || add_type(module, "Message", &message_spec, NULL, &message_type) < 0
        || add_type(module, "Reservation", &reservation_spec, NULL, &reservation_type) < 0)
        return -1;
    if (add_type(module, "HeapBase", &heap_spec, NULL, &heap_type) < 0
        || add_type(module, "Ref", &ref_spec, NULL, &ref_type) < 0
        || add_type(module, "Lens", &lens_spec, NULL, &lens_type) < 0
        || add_type(module, "Container", &container_spec, NULL, NULL) < 0
        || add_type(module, "Layout", &layout_spec, NULL, &layout_type) < 0
        || add_type(module, "Field", &field_spec, NULL, &field_type) < 0
        || add_type(module, "Record", &record_spec, NULL, &record_type) < 0
        || add_type(module, "FrozenBase", &image_spec, NULL, &image_type) < 0
        || add_type(module, "FrozenRef", &frozen_ref_spec, NULL, &frozen_ref_type) < 0
        || add_type(module, "FrozenRecord", &frozen_record_spec, NULL, &frozen_record_type) < 0 || record_setup() < 0)
        return -1;
    guard_type(&round_spec);
    round_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &round_spec, NULL);
    if (round_type == NULL)
        return -1;
    guard_type(&pin_spec);
    pin_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &pin_spec, NULL); /* nobody makes one by name */
    return pin_type != NULL ? 0 : -1;
}

static PyModuleDef_Slot core_slots[] = {
    {Py_mod_exec, exec_core},
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef core_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "mirrormap._core",
    .m_doc = "System calls on mapped memory, and the types that own ranges of it.",
    .m_size = 0,
    .m_methods = call_methods,
    .m_slots = core_slots,
};

PyMODINIT_FUNC PyInit__core(void); /* the headers leave the prototype out */

PyMODINIT_FUNC PyInit__core(void)
{
    static bool guarded;
    if (guard_setup() < 0)
        return NULL;
    if (!guarded)
        guard_methods(call_methods);
    guarded = true;
    return PyModuleDef_Init(&core_module);
}
