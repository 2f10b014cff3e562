/* Kernel calls for a file system of our own: mounted nowhere, reached by a descriptor alone. */
#define _GNU_SOURCE
#include "faults.h"
#include "sys.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* The same numbers on every architecture; headers may be older than the kernel. */
#ifndef SYS_fsopen
#define SYS_fsopen 430
#define SYS_fsconfig 431
#define SYS_fsmount 432
#endif
enum { FS_CLOEXEC = 1, SET_STRING = 1, CREATE = 6, NO_SUID = 2, NO_DEVICES = 4, NO_EXECUTION = 8 };

static int mounted(const char *huge, int *mount)
{
    const char *const options[][2] = {
        {"huge", huge}, {"size", "0"}, {"nr_inodes", "0"}, {"mode", "0700"}, {"source", "mirrormap"}};
    int context = (int)syscall(SYS_fsopen, "tmpfs", FS_CLOEXEC);
    if (context < 0)
        return errno;
    int error = 0;
    for (size_t i = 0; i < sizeof options / sizeof *options && error == 0; i++)
        if (syscall(SYS_fsconfig, context, SET_STRING, options[i][0], options[i][1], 0) < 0)
            error = errno;
    if (error == 0 && syscall(SYS_fsconfig, context, CREATE, NULL, NULL, 0) < 0)
        error = errno;
    if (error == 0) {
        int got = (int)syscall(SYS_fsmount, context, FS_CLOEXEC, NO_SUID | NO_DEVICES | NO_EXECUTION);
        error = got < 0 ? errno : 0;
        if (error == 0)
            *mount = got;
    }
    close(context);
    return error;
}

struct errand {
    char uids[64], gids[64]; /* whom its namespace knows: ourselves */
    const char *huge;
    int error, mount;
};

static int written(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return errno;
    int error = write(fd, text, strlen(text)) < 0 ? errno : 0;
    close(fd);
    return error;
}

static int mounted_within(struct errand *errand)
{
    int error = unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0 ? errno : 0;
    if (error == 0)
        error = written("/proc/self/setgroups", "deny");
    if (error == 0)
        error = written("/proc/self/uid_map", errand->uids);
    if (error == 0)
        error = written("/proc/self/gid_map", errand->gids);
    return error != 0 ? error : mounted(errand->huge, &errand->mount);
}

/* In a child that shares memory and descriptors with the parent, which stands still meanwhile. */
#if defined(__SANITIZE_ADDRESS__)
__attribute__((no_sanitize("address")))
#endif
static int run_errand(void *argument)
{
    struct errand *errand = argument;
    do /* no signal is for this child: whoever began it anew for one could do so for ever */
        errand->error = mounted_within(errand);
    while (errand->error == EINTR);
    return 0;
}

/* Whoever may not mount may in a user namespace of a child's; the mount outlives the child. */
static int mounted_elsewhere(const char *huge, int *mount)
{
    struct errand errand = {.error = ECHILD, .huge = huge};
    _Alignas(16) char stack[32768];
    sigset_t all, before;
    snprintf(errand.uids, sizeof errand.uids, "%u %u 1", (unsigned)geteuid(), (unsigned)geteuid());
    snprintf(errand.gids, sizeof errand.gids, "%u %u 1", (unsigned)getegid(), (unsigned)getegid());
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* a handler that ran there would be in two processes */
    /* no signal at its end, so that nobody else waits for it */
    pid_t child = clone(run_errand, stack + sizeof stack, CLONE_VM | CLONE_VFORK | CLONE_FILES, &errand);
    int error = child < 0 ? errno : 0;
    if (child >= 0)
        while (waitpid(child, NULL, __WALL) < 0 && errno == EINTR)
            ;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error == 0)
        error = errand.error;
    if (error == 0)
        *mount = errand.mount;
    return error;
}

int mm_sys_mount_tmpfs(const char *huge, int *mount)
{
    FAULT("fsmount");
    int error = mounted(huge, mount);
    return error == EPERM || error == EACCES ? mounted_elsewhere(huge, mount) : error;
}

int mm_sys_open_at(int folder, const char *name, int flags, unsigned mode, int *fd)
{
    FAULT("openat");
    int got = openat(folder, name, flags | O_CLOEXEC, (mode_t)mode);
    if (got < 0)
        return errno;
    *fd = got;
    return 0;
}

int mm_sys_unlink_at(int folder, const char *name)
{
    FAULT("unlinkat");
    return unlinkat(folder, name, 0) < 0 ? errno : 0;
}
