package hsmtest

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A Token is a PKCS#11 token and the module that reaches it. Its methods may be called
// concurrently, except ChangePIN, Hide and Restore.
type Token struct {
	Module string // path of a library that no other Token has
	Label  string // of this token alone, except with NSS
	Serial string
	PIN    string // of the user
	SOPIN  string // of the security officer
	Dir    string // holds its object files

	tool    string   // the module that pkcs11-tool uses, so that it is not counted or failed
	env     []string // what a child process needs
	pinFile string
}

// URI returns the RFC 7512 URI of the token, or of an object with this label unless it is
// empty. It names the module, and [Token.PINFile] as the PIN's source.
func (k *Token) URI(object string) string {
	uri := "pkcs11:token=" + escape(k.Label)
	if object != "" {
		uri += ";object=" + escape(object)
	}
	return uri + "?module-path=" + escape(k.Module) + "&pin-source=file:" + escape(k.pinFile)
}

// escape encodes all but unreserved characters (RFC 3986 section 2.3) and the slash.
func escape(s string) string {
	return strings.ReplaceAll(strings.ReplaceAll(url.QueryEscape(s), "+", "%20"), "%2F", "/")
}

// PINFile returns the path of a file, readable by its owner only, that holds the PIN the token
// was made with and a newline. ChangePIN leaves it alone, as it would be in life.
func (k *Token) PINFile() string { return k.pinFile }

// Env returns the variables that a child process needs to reach the token, as "name=value".
// In this process they are set.
func (k *Token) Env() []string { return append([]string(nil), k.env...) }

// ChangePIN gives the token and k.PIN a new user PIN, from another process.
func (k *Token) ChangePIN(t testing.TB, pin string) {
	t.Helper()
	k.Tool(t, "--change-pin", "--new-pin", pin)
	k.PIN = pin
}

// Tool runs pkcs11-tool, logged in to the token, in another process and past any [Fault]. It
// returns what was printed.
func (k *Token) Tool(t testing.TB, args ...string) string {
	t.Helper()
	tool := program(t, "pkcs11-tool", "opensc")
	return run(t, k.env, tool, append([]string{
		"--module", k.tool, "--token-label", k.Label, "--login", "--pin", k.PIN}, args...)...)
}

// Generate makes a key pair in the token with [Token.Tool]. The id is in hexadecimal, the kind
// as in rsa:2048 or EC:prime256v1, and the flags are those of pkcs11-tool, such as --usage-sign,
// --usage-decrypt, --sensitive, --extractable and --always-auth. An id or label may be there already.
func (k *Token) Generate(t testing.TB, label, id, kind string, flags ...string) {
	t.Helper()
	k.Tool(t, append([]string{"--keypairgen", "--label", label, "--id", id, "--key-type", kind}, flags...)...)
}

// Import writes an object of type privkey, pubkey or cert to the token with [Token.Tool]. The DER
// is PKCS #8, a SubjectPublicKeyInfo or a certificate.
func (k *Token) Import(t testing.TB, typ, label, id string, der []byte, flags ...string) {
	t.Helper()
	file := write(t, filepath.Join(t.TempDir(), "object.der"), der, 0o600)
	k.Tool(t, append([]string{"--write-object", file, "--type", typ, "--label", label, "--id", id}, flags...)...)
}

// Delete deletes the first object of type privkey, pubkey or cert with this label.
func (k *Token) Delete(t testing.TB, typ, label string) {
	t.Helper()
	k.Tool(t, "--delete-object", "--type", typ, "--label", label)
}

// Hide takes the token's files away until [Token.Restore].
func (k *Token) Hide(t testing.TB) {
	t.Helper()
	k.move(t, k.Dir, k.hidden())
}

// Restore undoes [Token.Hide].
func (k *Token) Restore(t testing.TB) {
	t.Helper()
	k.move(t, k.hidden(), k.Dir)
}

// hidden is outside the folder where SoftHSM looks for tokens.
func (k *Token) hidden() string {
	return filepath.Join(filepath.Dir(filepath.Dir(k.Dir)), fmt.Sprintf("hidden-%s", k.Label))
}

func (k *Token) move(t testing.TB, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatalf("hsmtest: %v", err)
	}
}
