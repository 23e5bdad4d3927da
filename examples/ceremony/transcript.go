package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/user"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/scepkit/scepkit/backend"
)

// A record is what an auditor reads about one command.
type record struct {
	Time      time.Time `json:"time"`
	Command   string    `json:"command"`
	Arguments []string  `json:"arguments"`
	Host      string    `json:"host"`
	User      string    `json:"user"`
	Program   string    `json:"program"`
	Go        string    `json:"go"`

	Key      *keyRecord          `json:"key,omitempty"`
	CA       *keyRecord          `json:"ca,omitempty"`
	Replaced []certificateRecord `json:"replaced,omitempty"`
	Request  string              `json:"requestSHA256,omitempty"`
	Tests    map[string]string   `json:"tests,omitempty"`
	Warnings []string            `json:"warnings,omitempty"`
	Problems []string            `json:"problems,omitempty"`

	Outcome string `json:"outcome"` // done or failed
	Error   string `json:"error,omitempty"`
}

type keyRecord struct {
	Kind         string              `json:"kind"`
	SPKI         string              `json:"spkiSHA256"`
	Attributes   map[string]string   `json:"attributes"`
	Certificates []certificateRecord `json:"certificates,omitempty"`
}

type certificateRecord struct {
	Subject     string    `json:"subject"`
	Serial      string    `json:"serial"`
	Fingerprint string    `json:"sha256"`
	NotBefore   time.Time `json:"notBefore"`
	NotAfter    time.Time `json:"notAfter"`
}

func (r *record) begin(command string, args []string) {
	r.Time, r.Command, r.Arguments = time.Now().UTC(), command, args
	r.Program, r.Go = version(), runtime.Version()
	var err error
	if r.Host, err = os.Hostname(); err != nil {
		r.Host = "unknown"
	}
	if u, err := user.Current(); err == nil {
		r.User = u.Username
	} else {
		r.User = "unknown"
	}
}

// version says which program this is.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "ceremony"
	}
	s := info.Path + " " + info.Main.Version
	for _, set := range info.Settings {
		switch {
		case set.Key == "vcs.revision":
			s += " " + set.Value
		case set.Key == "vcs.modified" && set.Value == "true":
			s += " modified"
		}
	}
	return s
}

func recordKey(k *backend.Key) *keyRecord {
	r := &keyRecord{
		Kind:         backend.Describe(k.Key.Public()),
		SPKI:         spki(k),
		Attributes:   map[string]string{},
		Certificates: recordCertificates(k.Certificates),
	}
	for _, a := range k.Description {
		r.Attributes[a.Name] = a.Value
	}
	return r
}

func recordCertificates(certs []*x509.Certificate) (list []certificateRecord) {
	for _, cert := range certs {
		list = append(list, certificateRecord{cert.Subject.String(), serial(cert), fingerprint(cert.Raw), cert.NotBefore, cert.NotAfter})
	}
	return list
}

func serial(cert *x509.Certificate) string { return fmt.Sprintf("%x", cert.SerialNumber) }

// spki is the SHA-256 of the public key, by which it is known whatever certificates it has.
func spki(k *backend.Key) string {
	der, err := x509.MarshalPKIXPublicKey(k.Key.Public())
	if err != nil {
		return err.Error()
	}
	return fingerprint(der)
}

func fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// A transcript is a file of records, one a line, or nil.
type transcript struct{ f *os.File }

// openTranscript opens the file before anything is done that should be in it.
func openTranscript(name string) (*transcript, error) {
	if name == "" {
		return nil, nil
	}
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("the transcript: %w", err)
	}
	first := make([]byte, 1)
	if n, _ := f.ReadAt(first, 0); n == 1 && first[0] != '{' {
		f.Close()
		return nil, fmt.Errorf("%s is not a transcript; nothing is appended to it, and nothing was done", name)
	}
	return &transcript{f}, nil
}

// end appends how the command came out.
func (t *transcript) end(r *record, outcome error) error {
	if t == nil {
		return nil
	}
	r.Outcome = "done"
	if outcome != nil {
		r.Outcome, r.Error = "failed", outcome.Error()
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // URIs have a "&"
	if err := e.Encode(r); err != nil {
		return err
	}
	text := b.Bytes()
	if info, err := t.f.Stat(); err == nil && info.Size() > 0 {
		// A record that a crash left half written does not spoil this one.
		last := make([]byte, 1)
		if _, err := t.f.ReadAt(last, info.Size()-1); err == nil && last[0] != '\n' {
			text = append([]byte{'\n'}, text...)
		}
	}
	_, err := t.f.Write(text)
	if err == nil {
		err = t.f.Sync()
	}
	if closing := t.f.Close(); err == nil {
		err = closing
	}
	return err
}
