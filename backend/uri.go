package backend

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"runtime"
	"slices"
	"strings"
)

// A URI names a key. See [Open] for examples.
type URI struct {
	// Scheme is file, pkcs11 or tpm, or that of another [Driver], in lower case.
	Scheme string

	// Path is the name of a file, percent-decoded, perhaps empty. It is always empty for pkcs11.
	Path string

	// Attributes has the path attributes of pkcs11 (RFC 7512, section 2.3), percent-decoded:
	// id is the bytes themselves. It is nil for other schemes.
	Attributes map[string]string

	// Query has what is after the question mark, percent-decoded. No value is empty.
	Query map[string]string

	text string
}

// ParseURI reads the URI of a key:
//
//	SCHEME:PATH?NAME=VALUE&NAME=VALUE
//	pkcs11:NAME=VALUE;NAME=VALUE?NAME=VALUE&NAME=VALUE
//
// PATH is absolute or relative, or empty. file:///x is file:/x; a host is an error, and so is a
// name given twice, a name without a value, or a control character in a path or query.
// Everything else that a path or value cannot have as it is (";", "&", "?", "#", "%") is
// percent-encoded.
//
// A PIN in the URI (pin-value) is an error, which does not repeat it.
func ParseURI(s string) (*URI, error) {
	if hasPIN(s) {
		return nil, fmt.Errorf("backend: the URI of a key has a PIN in it (pin-value), which process lists and logs would show; put the PIN in a file and name that with pin-source=file:/..., and change it if others may have seen it: %w", ErrUnsupported)
	}
	scheme, rest, ok := strings.Cut(s, ":")
	if !ok || !isScheme(scheme) {
		return nil, errors.New("backend: the name of a key is a URI; write file:/etc/scep/ca.key for a file, pkcs11:... for a token, tpm:... for a TPM")
	}
	u := &URI{Scheme: strings.ToLower(scheme), text: s}
	if strings.Contains(rest, "#") {
		return nil, u.errorf(`has a "#"; write %%23 for it`)
	}
	path, query, _ := strings.Cut(rest, "?")
	var err error
	if u.Scheme == "pkcs11" {
		u.Attributes, err = u.pairs(path, ";", false)
		if u.Attributes == nil {
			u.Attributes = map[string]string{}
		}
	} else {
		u.Path, err = u.path(path)
	}
	if err != nil {
		return nil, err
	}
	if u.Query, err = u.pairs(query, "&", true); err != nil {
		return nil, err
	}
	return u, nil
}

// hasPIN reports whether there is a PIN in s, however its name is written.
func hasPIN(s string) bool {
	const name = "pin-value="
	if strings.Contains(strings.ToLower(s), name) {
		return true
	}
	return strings.Contains(strings.ToLower(lenient(s)), name)
}

// lenient decodes what is percent-encoded well and leaves the rest.
func lenient(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+3 <= len(s) {
			if c, err := url.PathUnescape(s[i : i+3]); err == nil {
				b.WriteString(c)
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func isScheme(s string) bool {
	for i, c := range []byte(strings.ToLower(s)) {
		letter := 'a' <= c && c <= 'z'
		if !letter && (i == 0 || !('0' <= c && c <= '9' || c == '+' || c == '-' || c == '.')) {
			return false
		}
	}
	return s != ""
}

func (u *URI) errorf(format string, args ...any) error {
	return fmt.Errorf("backend: the URI of a key (%s:...) "+format, append([]any{u.Scheme}, args...)...)
}

// path decodes the name of a file.
func (u *URI) path(s string) (string, error) {
	if rest, ok := strings.CutPrefix(s, "//"); ok {
		host, path, ok := strings.Cut(rest, "/")
		if host != "" && !strings.EqualFold(host, "localhost") {
			return "", u.errorf("names the host %q; a path has one slash in front of it, or three", host)
		}
		if s = ""; ok {
			s = "/" + path
		}
	}
	path, err := url.PathUnescape(s)
	if err != nil {
		return "", u.errorf("has a %% in its path that is not of the form %%2F; write %%25 for the sign itself")
	}
	if control(path) {
		return "", u.errorf("has a control character in its path; correct it")
	}
	if runtime.GOOS == "windows" && len(path) > 2 && path[0] == '/' && path[2] == ':' {
		path = path[1:] // file:///C:/x
	}
	return path, nil
}

// pairs decodes NAME=VALUE, separated by sep. If plain, values have no control characters.
func (u *URI) pairs(s, sep string, plain bool) (map[string]string, error) {
	if s == "" {
		return nil, nil
	}
	out := map[string]string{}
	for part := range strings.SplitSeq(s, sep) {
		name, value, ok := strings.Cut(part, "=")
		if !ok || !isName(name) {
			// It may be something else that went astray, so it is not repeated.
			return nil, u.errorf("has something in it that is not NAME=VALUE; write attributes as pkcs11:NAME=VALUE;NAME=VALUE?NAME=VALUE&NAME=VALUE")
		}
		if _, ok := out[name]; ok {
			return nil, u.errorf("has %s twice; leave one", name)
		}
		value, err := url.PathUnescape(value)
		switch {
		case err != nil:
			return nil, u.errorf("has a %% in %s that is not of the form %%2F; write %%25 for the sign itself", name)
		case value == "":
			return nil, u.errorf("has %s without a value; give one or leave it out", name)
		case plain && control(value):
			return nil, u.errorf("has a control character in %s; correct it", name)
		}
		out[name] = value
	}
	return out, nil
}

func isName(s string) bool {
	for _, c := range []byte(s) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
			return false
		}
	}
	return s != ""
}

func control(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// String returns the URI as it was given. There is no PIN in it: ParseURI refuses pin-value.
func (u *URI) String() string { return u.text }

// Only reports an attribute or query attribute that is not among those named. The error wraps
// [ErrUnsupported].
func (u *URI) Only(attributes, query []string) error {
	for _, part := range []struct {
		have  map[string]string
		names []string
		where string
	}{{u.Attributes, attributes, "before"}, {u.Query, query, "after"}} {
		for _, name := range slices.Sorted(maps.Keys(part.have)) {
			if slices.Contains(part.names, name) {
				continue
			}
			use := "nothing stands there"
			if len(part.names) > 0 {
				use = "use " + strings.Join(part.names, ", ")
			}
			return u.errorf("has %s %s the question mark, which its driver does not know; %s: %w", name, part.where, use, ErrUnsupported)
		}
	}
	return nil
}

func describe(pub crypto.PublicKey) string {
	switch pub := pub.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA-%d", pub.N.BitLen())
	case *ecdsa.PublicKey:
		return "ECDSA " + pub.Params().Name
	case ed25519.PublicKey:
		return "Ed25519"
	}
	return fmt.Sprintf("%T", pub)
}
