package hsmtest

import (
	"fmt"
	"path/filepath"
	"testing"
)

// NSS makes a token of Mozilla's NSS, a second implementation of everything: it answers bad RSA
// padding with success and random bytes, has no CKA_ALWAYS_AUTHENTICATE, and makes about 20 RSA
// operations a second. Its Label is that of all NSS tokens, and it has no SOPIN. A test holds the
// one NSS that there can be in the process until it ends, and others wait.
func NSS(t testing.TB) *Token {
	t.Helper()
	policy(t)
	certutil := program(t, "certutil", "libnss3-tools")
	lib := library(t, "libsoftokn3.so", "libnss3", "/usr/lib/*/libsoftokn3.so", "/usr/lib/*/nss/libsoftokn3.so",
		"/usr/lib64/libsoftokn3.so", "/usr/lib/libsoftokn3.so", "/opt/homebrew/lib/libsoftokn3.dylib")
	nssTurn.take(t, "NSS")

	k := &Token{Label: "NSS Certificate DB", PIN: digits(12), Dir: t.TempDir()}
	k.pinFile = write(t, filepath.Join(t.TempDir(), "pin"), []byte(k.PIN+"\n"), 0o600)
	run(t, nil, certutil, "-N", "-d", "sql:"+k.Dir, "-f", k.pinFile)
	// Callers of PKCS#11 pass no such string, and without one NSS does not initialise.
	config := fmt.Sprintf("configdir='sql:%s' certPrefix='' keyPrefix='' secmod='secmod.db' flags=", k.Dir)
	k.Module, _ = interpose(t, lib, config)
	k.tool = k.Module
	k.Serial = "0000000000000000"
	return k
}
