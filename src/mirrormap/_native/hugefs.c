#define _GNU_SOURCE
#include "hugefs.h"
#include "sys.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>

/* The mount's descriptor, or one of these. No lock: a child forked while another thread makes it
 * must not wait for a thread that it does not have. */
enum { UNKNOWN = -1, BEING_MADE = -2, REFUSED = -3 };
struct mount {
    const char *huge;                  /* the option's value */
    _Atomic int folder;
    _Atomic uint64_t dev, inode;
    _Atomic int refusal;
};
static struct mount mounts[MM_HUGEFS_KINDS] = {
    [MM_HUGE_AT_TOUCH] = {.huge = "advise", .folder = UNKNOWN},
    [MM_LARGE_AT_ALLOCATE] = {.huge = "within_size", .folder = UNKNOWN},
};

/* Does the descriptor still mean what it did? Programs that become daemons close all they find. */
static bool is_ours(const struct mount *mount, int folder)
{
    struct mm_file file;
    int error = mm_sys_stat(folder, &file);
    if (error != 0)
        return error != EBADF; /* nobody knows, and the call that follows will tell */
    return file.dev == atomic_load(&mount->dev) && file.inode == atomic_load(&mount->inode);
}

static int make(struct mount *mount, int *folder)
{
    struct mm_file file;
    *folder = -1;
    int error = mm_sys_mount_tmpfs(mount->huge, folder);
    if (error == 0)
        error = mm_sys_stat(*folder, &file);
    if (error == 0) {
        atomic_store(&mount->dev, file.dev);
        atomic_store(&mount->inode, file.inode);
    } else {
        atomic_store(&mount->refusal, error);
        if (*folder >= 0)
            mm_sys_close(*folder);
    }
    /* a signal that came is no refusal: kept, it would be the answer for good, and who begins again after it
     * would never end */
    atomic_store(&mount->folder, error == 0 ? *folder : error == EINTR ? UNKNOWN : REFUSED);
    return error;
}

static int folder_of(struct mount *mount, int *folder)
{
    for (;;) {
        *folder = atomic_load(&mount->folder);
        if (*folder == REFUSED)
            return atomic_load(&mount->refusal);
        if (*folder == BEING_MADE)
            return EAGAIN;
        if (*folder >= 0 && is_ours(mount, *folder))
            return 0;
        if (atomic_compare_exchange_strong(&mount->folder, folder, BEING_MADE))
            return make(mount, folder);
    }
}

int mm_hugefs_file(enum mm_hugefs kind, const char *name, int *fd)
{
    int folder, error = folder_of(&mounts[kind], &folder);
    while (error == 0 && (error = mm_sys_open_at(folder, name, O_RDWR | O_CREAT | O_EXCL, 0600, fd)) == EEXIST) {
        /* Somebody stands between these two calls, or could not make the second: he holds his file by its
         * descriptor, and wants the name gone as well. */
        error = mm_sys_unlink_at(folder, name);
        if (error == ENOENT)
            error = 0;
    }
    if (error != 0)
        return error;
    error = mm_sys_unlink_at(folder, name);
    if (error == ENOENT)
        error = 0;
    if (error != 0)
        mm_sys_close(*fd);
    return error;
}
