package scepclient

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/internal/cms"
)

// Capabilities are what a server says that it can do (RFC 8894, 3.5.2). They are not
// authenticated.
type Capabilities struct {
	// Keywords are as received, with those that this package does not know. None means that the
	// server sent an empty list or an HTTP error, or cut the connection, as some do.
	Keywords []string
}

// Has reports whether there is this keyword, in whatever case, or one that implies it:
// SCEPStandard implies AES, POSTPKIOperation and SHA-256.
func (caps Capabilities) Has(keyword string) bool {
	has := func(word string) bool {
		return slices.ContainsFunc(caps.Keywords, func(k string) bool { return strings.EqualFold(k, word) })
	}
	switch strings.ToUpper(keyword) {
	case "AES", "POSTPKIOPERATION", "SHA-256":
		return has(keyword) || has("SCEPStandard")
	}
	return has(keyword)
}

const (
	maxKeywords = 100
	maxKeyword  = 100 // characters
)

// parseCapabilities reads one keyword in each line. What cannot be a keyword is skipped.
func parseCapabilities(body []byte) Capabilities {
	var caps Capabilities
	body = bytes.TrimPrefix(body, []byte("\xef\xbb\xbf"))
	for line := range bytes.FieldsFuncSeq(body, func(r rune) bool { return r == '\r' || r == '\n' || r == 0 }) {
		line = bytes.Trim(line, " \t")
		if len(line) == 0 || len(line) > maxKeyword || bytes.ContainsFunc(line, notInKeyword) {
			continue
		}
		if len(caps.Keywords) == maxKeywords {
			break
		}
		caps.Keywords = append(caps.Keywords, string(line))
	}
	return caps
}

func notInKeyword(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`<>"&`, r) }

// Capabilities asks what the server can do. An empty list, an HTTP error and a connection that
// was cut are no errors, but no capabilities.
func (c *Client) Capabilities(ctx context.Context) (Capabilities, error) {
	if err := c.check(); err != nil {
		return Capabilities{}, err
	}
	a, err := c.get(ctx, "GetCACaps", c.Name)
	var (
		status *statusError
		busy   *UnavailableError
	)
	switch {
	case err == nil:
		return parseCapabilities(a.body), nil
	case errors.As(err, &busy), ctx.Err() != nil:
		return Capabilities{}, err
	case errors.As(err, &status), errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return Capabilities{}, nil
	}
	return Capabilities{}, err
}

// A Suite is how messages are protected and sent.
type Suite struct {
	Cipher string      // as "AES-128-CBC"
	Hash   crypto.Hash // of messages and CSRs
	POST   bool        // else GET

	cipher cms.Cipher
}

// Choose returns what this client uses with a server that has caps: AES-128 and SHA-256 where
// they are to be had (RFC 8894, 3.5.2), otherwise what Client.Legacy admits, otherwise an error
// that names what is missing. Of a server without capabilities it takes the oldest that
// Client.Legacy admits, and without that what RFC 8894 demands of all servers.
func (c *Client) Choose(caps Capabilities) (Suite, error) {
	if err := c.check(); err != nil {
		return Suite{}, err
	}
	silent := len(caps.Keywords) == 0
	if silent && c.Legacy == 0 {
		caps.Keywords = []string{"SCEPStandard"}
	}
	var (
		s       = Suite{POST: caps.Has("POSTPKIOperation")}
		missing []string
	)
	switch {
	case caps.Has("AES"):
		s.cipher = cms.AES128
	case c.Legacy&scep.TripleDES != 0:
		s.cipher = cms.TripleDES
	case silent:
		s.cipher = cms.AES128
	default:
		missing = append(missing, "AES (Client.Legacy with scep.TripleDES would use Triple DES)")
	}
	switch {
	case c.Hash != 0:
		s.Hash = c.Hash
		if word := hashKeyword(c.Hash); !caps.Has(word) && !silent {
			missing = append(missing, word+", which Client.Hash asks for")
		}
	case caps.Has("SHA-256"):
		s.Hash = crypto.SHA256
	case caps.Has("SHA-512"):
		s.Hash = crypto.SHA512
	case caps.Has("SHA-384"):
		s.Hash = crypto.SHA384
	case c.Legacy&scep.SHA1 != 0:
		s.Hash = crypto.SHA1
	case silent:
		s.Hash = crypto.SHA256
	default:
		missing = append(missing, "SHA-256 (Client.Legacy with scep.SHA1 would use SHA-1)")
	}
	if missing != nil {
		return Suite{}, fmt.Errorf("scepclient: the server does not offer %s; it offers %.300q", strings.Join(missing, ", nor "), strings.Join(caps.Keywords, " "))
	}
	s.Cipher = s.cipher.String()
	return s, nil
}

func hashKeyword(h crypto.Hash) string {
	switch h {
	case crypto.SHA384:
		return "SHA-384"
	case crypto.SHA512:
		return "SHA-512"
	}
	return "SHA-256"
}
