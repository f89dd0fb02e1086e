; A guest of 512 bytes that writes to memory without end: what a live move of it does not converge by itself.
;
; At each of the BIOS clock's 18.2 ticks a second it writes one word to each page from 16 MiB to 24 MiB, which makes
; 146 MiB a second to copy, rests until the next one, and never touches its disk. Once a second it prints to the first
; serial port, as counter.asm does:
;   boot 1 count <passes>

        bits 16
        org 0x7c00

TICKS   equ 0x46c               ; the BIOS's tick counter
COM1    equ 0x3f8
FIRST   equ 16 << 20
LAST    equ 24 << 20

start:  jmp     0:main
main:   xor     ax, ax
        mov     ds, ax
        mov     ss, ax
        mov     sp, 0x7c00
        cld
        mov     ax, 0x2401      ; A20: memory above 1 MiB
        int     0x15
        lgdt    [table]
        xor     ebp, ebp

tick:   sti
        hlt
        mov     ax, [TICKS]
        cmp     ax, [last]
        je      tick
        mov     [last], ax

        cli                     ; the BIOS may have given fs its limit of 64 KiB back
        mov     eax, cr0
        or      al, 1
        mov     cr0, eax
        mov     bx, 8
        mov     fs, bx
        and     al, ~1
        mov     cr0, eax
        xor     bx, bx
        mov     fs, bx

        mov     edi, FIRST
page:   inc     dword [fs:edi]
        add     edi, 4096
        cmp     edi, LAST
        jb      page
        inc     ebp
        dec     byte [left]
        jnz     tick
        mov     byte [left], 18
        mov     si, text
.next:  lodsb
        test    al, al
        jz      .number
        call    char
        jmp     .next
.number:
        mov     eax, ebp
        mov     ebx, 10
        xor     cx, cx
.split: xor     edx, edx
        div     ebx
        push    dx
        inc     cx
        test    eax, eax
        jnz     .split
.digit: pop     ax
        add     al, '0'
        call    char
        loop    .digit
        mov     al, 13
        call    char
        mov     al, 10
        call    char
        jmp     tick

char:   push    ax
        mov     dx, COM1 + 5
.full:  in      al, dx
        test    al, 0x20
        jz      .full
        pop     ax
        mov     dx, COM1
        out     dx, al
        ret

text:   db      "boot 1 count ", 0
last:   dw      0
left:   db      18
        align   8
gdt:    dq      0
        dq      0x00cf92000000ffff
table:  dw      $ - gdt - 1
        dd      gdt

        times   510 - ($ - $$) db 0
        dw      0xaa55
