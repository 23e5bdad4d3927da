package scep

import (
	"fmt"
	"log/slog"
)

// A Secret is text that does not print: fmt, slog and encoding/json show "[redacted]".
// It cannot be compared with ==; see [crypto/subtle]. The zero Secret is empty.
type Secret struct {
	// A closure, not a string: fmt prints unexported fields without asking their methods.
	reveal func() string
}

// NewSecret hides s.
func NewSecret(s string) Secret { return Secret{func() string { return s }} }

// Reveal returns the text.
func (s Secret) Reveal() string {
	if s.reveal == nil {
		return ""
	}
	return s.reveal()
}

// Empty reports whether there is no text.
func (s Secret) Empty() bool { return s.Reveal() == "" }

const redacted = "[redacted]"

// Format implements [fmt.Formatter].
func (s Secret) Format(f fmt.State, verb rune) { fmt.Fprint(f, redacted) }

// LogValue implements [slog.LogValuer].
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText implements [encoding.TextMarshaler].
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
