// Enroll is a SCEP client for the command line: it makes a key, has a certificate issued for
// it, renews that, and goes on with a request that had to wait.
package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/scepclient"
)

const usage = `usage: enroll COMMAND -url URL [flags]

  caps     show what the server can do
  cacert   show the CA's certificates and their fingerprints
  enroll   make a key and get a certificate: -cn NAME -challenge-file FILE -out NAME
  renew    get a certificate in place of one that you have: -cert FILE -key FILE -out NAME
  poll     go on with a request that waits for approval: -out NAME

-out NAME stands for the files NAME.key and NAME.pem, and NAME.pending while a
request waits. "enroll COMMAND -h" has the flags of a command.

Exit status: 0 done, 1 failed, 2 wrong usage, 3 still waiting for approval.
`

var (
	errUsage   = errors.New("usage")
	errPending = errors.New("pending")
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); {
	case err == nil, errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		os.Exit(2)
	case errors.Is(err, errPending):
		os.Exit(3)
	default:
		fmt.Fprintln(os.Stderr, "enroll:", err)
		os.Exit(1)
	}
}

// A command is one call of the program.
type command struct {
	client scepclient.Client
	stdout io.Writer
	stderr io.Writer

	fingerprints, ca           string
	legacy                     bool
	out                        files
	force                      bool
	keyFile, keyType, certFile string
	challenge, challengeFile   string
	cn, organization           string
	dns, email, ip, uri        list
	asPKCSReq                  bool
}

// A list is a flag that can be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	c := &command{stdout: stdout, stderr: stderr}
	commands := map[string]func(context.Context) error{
		"caps": c.caps, "cacert": c.cacert, "enroll": c.enroll, "renew": c.renew, "poll": c.poll,
	}
	if len(args) == 0 || commands[args[0]] == nil {
		fmt.Fprint(stderr, usage)
		return errUsage
	}
	if err := c.parse(args[0], args[1:]); err != nil {
		return err
	}
	return commands[args[0]](ctx)
}

func (c *command) parse(name string, args []string) error {
	f := flag.NewFlagSet("enroll "+name, flag.ContinueOnError)
	f.SetOutput(c.stderr)
	f.StringVar(&c.client.URL, "url", "", "`URL` of the SCEP server")
	f.StringVar(&c.client.Name, "name", "", "CA `identifier`, for servers that have several")
	f.BoolVar(&c.legacy, "legacy", false, "use Triple DES and SHA-1 with servers that offer nothing better")
	if name != "caps" {
		f.StringVar(&c.fingerprints, "fingerprint", "", "SHA-256 `fingerprint` of the CA's certificate; several with commas")
		f.StringVar(&c.ca, "ca", "", "PEM `file` with the CA's certificate, in place of a fingerprint")
		f.BoolVar(&c.client.InsecureAnyCA, "insecure-any-ca", false, "take any CA: whoever is on the way learns the challenge")
	}
	if name == "enroll" || name == "renew" || name == "poll" {
		f.StringVar(&c.out.name, "out", "", "write to `NAME`.key and NAME.pem")
		f.IntVar(&c.client.Retries, "retries", 3, "poll so often while the server waits for approval; -1: never")
		f.DurationVar(&c.client.RetryDelay, "retry-delay", 10*time.Second, "`time` between polls")
	}
	if name == "enroll" || name == "renew" {
		f.BoolVar(&c.force, "force", false, "if the files are there, rename them to NAME.key.old and NAME.pem.old")
		f.StringVar(&c.keyType, "key-type", "rsa2048", "make a key of this `kind`: rsa2048, rsa3072 or rsa4096")
		f.StringVar(&c.challenge, "challenge", os.Getenv("SCEP_CHALLENGE"), "challenge `password`; others can see it in the list of processes: better SCEP_CHALLENGE or -challenge-file")
		f.StringVar(&c.challengeFile, "challenge-file", "", "`file` with the challenge password")
	}
	switch name {
	case "enroll":
		f.StringVar(&c.keyFile, "key", "", "use the key in this PEM `file`, and make none")
		f.StringVar(&c.cn, "cn", "", "common `name`")
		f.StringVar(&c.organization, "o", "", "`organization`")
		f.Var(&c.dns, "dns", "DNS `name`; can be given several times, as -email, -ip and -uri")
		f.Var(&c.email, "email", "mail `address`")
		f.Var(&c.ip, "ip", "IP `address`")
		f.Var(&c.uri, "uri", "`URI`")
	case "renew":
		f.StringVar(&c.certFile, "cert", "", "PEM `file` with the certificate to renew")
		f.StringVar(&c.keyFile, "key", "", "PEM `file` with its key")
		f.BoolVar(&c.asPKCSReq, "as-pkcsreq", false, "renew with PKCSReq where the server does not offer renewal")
	}
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err // the flags have been printed
		}
		return errUsage
	}
	wrong := func(text string) error {
		fmt.Fprintf(c.stderr, "enroll %s: %s; see enroll %s -h\n", name, text, name)
		return errUsage
	}
	needs := map[string][]string{"enroll": {"out"}, "renew": {"out", "cert", "key"}, "poll": {"out"}}[name]
	if name != "poll" {
		needs = append([]string{"url"}, needs...)
	}
	for _, flag := range needs {
		if f.Lookup(flag).Value.String() == "" {
			return wrong("-" + flag + " is missing")
		}
	}
	if f.NArg() > 0 {
		return wrong(fmt.Sprintf("%q is no flag", f.Arg(0)))
	}
	if c.legacy {
		c.client.Legacy = scep.TripleDES | scep.SHA1
	}
	for _, s := range strings.Split(c.fingerprints, ",") {
		if s = strings.TrimSpace(s); s != "" {
			c.client.Fingerprints = append(c.client.Fingerprints, s)
		}
	}
	if c.ca != "" {
		certs, err := readCertificates(c.ca)
		if err != nil {
			return err
		}
		c.client.Roots = certs
	}
	return nil
}

func (c *command) caps(ctx context.Context) error {
	caps, err := c.client.Capabilities(ctx)
	if err != nil {
		return err
	}
	for _, k := range caps.Keywords {
		fmt.Fprintln(c.stdout, k)
	}
	suite, err := c.client.Choose(caps)
	if err != nil {
		return err
	}
	method := "GET"
	if suite.POST {
		method = "POST"
	}
	fmt.Fprintf(c.stderr, "This client uses %s with %s, by %s.\n", suite.Cipher, suite.Hash, method)
	return nil
}

func (c *command) cacert(ctx context.Context) error {
	ca, err := c.client.CACertificates(ctx)
	if err != nil {
		return err
	}
	for _, cert := range ca.Certificates {
		fmt.Fprintf(c.stdout, "subject      %s\nissuer       %s\nuntil        %s\nfingerprint  %s\n%s",
			cert.Subject, cert.Issuer, cert.NotAfter.UTC().Format(time.RFC3339), scepclient.Fingerprint(cert), certificatePEM(cert))
	}
	if !ca.Authenticated {
		fmt.Fprintln(c.stderr, "Nobody has vouched for these: compare a fingerprint with one that you know to be right.")
	}
	return nil
}

func (c *command) enroll(ctx context.Context) error {
	tmpl := &x509.CertificateRequest{
		Subject:  pkix.Name{CommonName: c.cn},
		DNSNames: c.dns, EmailAddresses: c.email,
	}
	if c.organization != "" {
		tmpl.Subject.Organization = []string{c.organization}
	}
	for _, s := range c.ip {
		ip := net.ParseIP(s)
		if ip == nil {
			return fmt.Errorf("-ip %s is no IP address", s)
		}
		tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
	}
	for _, s := range c.uri {
		u, err := url.Parse(s)
		if err != nil {
			return fmt.Errorf("-uri %s: %w", s, err)
		}
		tmpl.URIs = append(tmpl.URIs, u)
	}
	if c.cn == "" && len(c.dns)+len(c.email)+len(c.ip)+len(c.uri) == 0 {
		return errors.New("a certificate needs a name: give -cn, -dns, -email, -ip or -uri")
	}
	secret, err := c.secret()
	if err != nil {
		return err
	}
	key, err := c.newKey(c.keyFile)
	if err != nil {
		return err
	}
	return c.ask(key, "", func() (*scepclient.Result, error) {
		return c.client.Enroll(ctx, scepclient.Request{Key: key, Template: tmpl, Challenge: secret, TransactionID: transactionID(key)})
	}, ctx)
}

func (c *command) renew(ctx context.Context) error {
	certs, err := readCertificates(c.certFile)
	if err != nil {
		return err
	}
	oldKey, err := readKey(c.keyFile)
	if err != nil {
		return err
	}
	secret, err := c.secret()
	if err != nil {
		return err
	}
	key, err := c.newKey("")
	if err != nil {
		return err
	}
	return c.ask(key, c.keyFile, func() (*scepclient.Result, error) {
		return c.client.Renew(ctx, certs[0], oldKey, scepclient.Request{
			Key: key, Challenge: secret, TransactionID: transactionID(key), RenewAsPKCSReq: c.asPKCSReq,
		})
	}, ctx)
}

func (c *command) poll(ctx context.Context) error {
	w, err := c.out.readWaiting()
	if err != nil {
		return err
	}
	signer := w.SignerKey
	if signer == "" {
		signer = c.out.key()
	}
	signerKey, err := readKey(signer)
	if err != nil {
		return err
	}
	key, err := readKey(c.out.key())
	if err != nil {
		return err
	}
	return c.ask(key, w.SignerKey, func() (*scepclient.Result, error) {
		return c.client.Poll(ctx, w.Pending, signerKey)
	}, ctx)
}

// secret returns the challenge.
func (c *command) secret() (scep.Secret, error) {
	if c.challengeFile == "" {
		return scep.NewSecret(c.challenge), nil
	}
	text, err := os.ReadFile(c.challengeFile)
	if err != nil {
		return scep.Secret{}, err
	}
	return scep.NewSecret(strings.TrimRight(string(text), "\r\n")), nil
}

// newKey returns the key for which a certificate is wanted: that in the file, or that which an
// earlier call has left behind, or a new one, which is on disk before anybody is asked.
func (c *command) newKey(file string) (*rsa.PrivateKey, error) {
	if err := c.out.vacate(c.force, file); err != nil {
		return nil, err
	}
	if file != "" {
		return readKey(file)
	}
	if _, err := os.Stat(c.out.key()); err == nil {
		fmt.Fprintf(c.stderr, "Using %s, which is there without a certificate.\n", c.out.key())
		return readKey(c.out.key())
	}
	bits, ok := map[string]int{"rsa2048": 2048, "rsa3072": 3072, "rsa4096": 4096}[c.keyType]
	if !ok {
		return nil, fmt.Errorf("-key-type %s: use rsa2048, rsa3072 or rsa4096", c.keyType)
	}
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		return nil, err
	}
	return key, c.out.writeKey(key)
}

// transactionID names the request after its key, so that asking again after a lost answer, or
// after a crash, is the same request.
func transactionID(key crypto.Signer) string {
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(der)
	return strings.ToUpper(hex.EncodeToString(sum[:]))
}

// ask calls the server, again if it has no time, and writes what comes of it.
func (c *command) ask(key crypto.Signer, signerKey string, call func() (*scepclient.Result, error), ctx context.Context) error {
	c.client.OnPending = func(p *scepclient.Pending, poll int, next time.Duration) {
		if err := c.out.writeWaiting(&waiting{p, signerKey}); err != nil {
			fmt.Fprintln(c.stderr, "enroll:", err)
		}
		fmt.Fprintf(c.stderr, "Waiting for approval: poll %d of %d in %v.\n", poll, max(c.client.Retries, 0), next)
	}
	var result *scepclient.Result
	var err error
	for try := 0; ; try++ {
		result, err = call()
		var busy *scepclient.UnavailableError
		if !errors.As(err, &busy) || try >= max(c.client.Retries, 0) {
			break
		}
		pause := busy.RetryAfter
		if pause <= 0 {
			pause = c.client.RetryDelay
		}
		fmt.Fprintf(c.stderr, "The server has no time; trying again in %v.\n", pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	var pending *scepclient.PendingError
	if errors.As(err, &pending) {
		if err := c.out.writeWaiting(&waiting{pending.Pending, signerKey}); err != nil {
			return err
		}
		fmt.Fprintf(c.stderr, "The request still waits for approval. To go on: enroll poll -out %s\n", c.out.name)
		return errPending
	}
	if err != nil {
		return err
	}
	if err := c.out.writeCertificate(result.Certificate); err != nil {
		return err
	}
	if err := os.Remove(c.out.pending()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	fmt.Fprintf(c.stdout, "%s: %s, serial number %x, valid until %s\n", c.out.certificate(), result.Certificate.Subject,
		result.Certificate.SerialNumber, result.Certificate.NotAfter.UTC().Format(time.RFC3339))
	return nil
}

// waiting is what the file NAME.pending has.
type waiting struct {
	*scepclient.Pending
	SignerKey string `json:"signerKey,omitempty"` // file with the key that signed the message, if it is not NAME.key
}

func (f files) readWaiting() (*waiting, error) {
	text, err := os.ReadFile(f.pending())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is not there: no request of that name waits for approval", f.pending())
	}
	if err != nil {
		return nil, err
	}
	w := &waiting{Pending: &scepclient.Pending{}}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(w); err != nil {
		return nil, fmt.Errorf("%s: %w", f.pending(), err)
	}
	return w, nil
}
